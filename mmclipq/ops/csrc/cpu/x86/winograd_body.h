// Compiled by winograd_tiles.cpp for each kind of processor, in a namespace with kLanes, hence no
// include guard.

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(2 * kChannels)));

template <typename V, typename T>
CLIPQ_INLINE V load(const T *from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename T>
CLIPQ_INLINE void store(V v, T *to) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// B^T of six numbers.
CLIPQ_INLINE void transform_line(const Shorts d[kSide], Shorts t[kSide]) {
  const Shorts a = d[4] - (d[2] << 2), b = d[3] - (d[1] << 2);
  const Shorts c = d[4] - d[2], e = (d[3] - d[1]) << 1;
  t[0] = ((d[0] - d[2]) << 2) + c;
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = ((d[1] - d[3]) << 2) + (d[5] - d[3]);
}

void transform_tile(const uint8_t *const pixels[kPlaces], int64_t channels, const ClipqCodes &kind,
                    int16_t *to, int64_t stride) {
  const __m128i flip = _mm_set1_epi8(static_cast<char>(kind.flip));
  const auto subtrahend = static_cast<int16_t>(kind.subtrahend);
  for (int64_t channel = 0; channel < channels; channel += kChannels) {
    Shorts half[kSide][kSide];
#pragma GCC unroll 6
    for (int row = 0; row < kSide; ++row) {
      Shorts d[kSide];
#pragma GCC unroll 6
      for (int i = 0; i < kSide; ++i) {
        const auto codes = load<__m128i>(pixels[row * kSide + i] + channel);
        d[i] = reinterpret_cast<Shorts>(_mm256_cvtepu8_epi16(_mm_xor_si128(codes, flip))) -
               subtrahend;
      }
      transform_line(d, half[row]);
    }
#pragma GCC unroll 6
    for (int column = 0; column < kSide; ++column) {
      Shorts d[kSide], t[kSide];
#pragma GCC unroll 6
      for (int row = 0; row < kSide; ++row) d[row] = half[row][column];
      transform_line(d, t);
#pragma GCC unroll 6
      for (int row = 0; row < kSide; ++row) {
        store(t[row], to + (row * kSide + column) * stride + channel);
      }
    }
  }
}

// A^T, with 24 times the inverse factors of G's rows that the weights do not hold, of six sums.
CLIPQ_INLINE void restore_line(const Ints m[kSide], Ints y[kOut]) {
  const Ints s12 = m[1] + m[2], d12 = m[1] - m[2], s34 = m[3] + m[4], d34 = m[3] - m[4];
  y[0] = m[0] - s12 + s34;
  y[1] = d34 + d34 - d12;
  y[2] = (s34 << 2) - s12;
  y[3] = (d34 << 3) - d12 + (m[5] + m[5]) + m[5];
}

void restore_tile(const int32_t *from, int64_t from_stride, int64_t lanes, int32_t *to,
                  int64_t row_stride, int64_t step) {
  for (int64_t lane = 0; lane < lanes; lane += kLanes) {
    Ints half[kOut][kSide];
#pragma GCC unroll 6
    for (int column = 0; column < kSide; ++column) {
      Ints m[kSide], y[kOut];
#pragma GCC unroll 6
      for (int row = 0; row < kSide; ++row) {
        m[row] = load<Ints>(from + (row * kSide + column) * from_stride + lane);
      }
      restore_line(m, y);
#pragma GCC unroll 4
      for (int row = 0; row < kOut; ++row) half[row][column] = y[row];
    }
#pragma GCC unroll 4
    for (int row = 0; row < kOut; ++row) {
      Ints y[kOut];
      restore_line(half[row], y);
#pragma GCC unroll 4
      for (int column = 0; column < kOut; ++column) {
        store((y[column] * kInverseOf9) >> 6, to + row * row_stride + column * step + lane);
      }
    }
  }
}
