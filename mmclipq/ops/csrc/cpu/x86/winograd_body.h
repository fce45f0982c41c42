// Compiled by winograd_tiles.cpp for each kind of processor, in a namespace with kLanes, hence no
// include guard.

#include "lanes.h"

typedef int16_t Shorts __attribute__((vector_size(2 * kChannels)));

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

template <bool kSigned, bool kMoved>
CLIPQ_INLINE Shorts numbers(const uint8_t *codes, int16_t offset) {
  const auto bytes = load<__m128i>(codes);
  const auto v = reinterpret_cast<Shorts>(kSigned ? _mm256_cvtepi8_epi16(bytes)
                                                  : _mm256_cvtepu8_epi16(bytes));
  return kMoved ? v - offset : v;
}

// kChannels of them. Not inlined into their loop, ahead of which the compiler would put all addresses,
// more than there are registers.
template <bool kSigned, bool kMoved>
__attribute__((noinline)) void transform(const uint8_t *const *pixels, int64_t channel,
                                         int16_t offset, int16_t *to, int64_t stride) {
  Shorts half[kSide][kSide];
#pragma GCC unroll 6
  for (int column = 0; column < kSide; ++column) {
    Shorts d[kSide];
#pragma GCC unroll 6
    for (int row = 0; row < kSide; ++row) {
      d[row] = numbers<kSigned, kMoved>(pixels[row * kSide + column] + channel, offset);
    }
    transform_line(d, half[column]);
  }
#pragma GCC unroll 6
  for (int row = 0; row < kSide; ++row) {
    Shorts d[kSide], t[kSide];
#pragma GCC unroll 6
    for (int column = 0; column < kSide; ++column) d[column] = half[column][row];
    transform_line(d, t);
#pragma GCC unroll 6
    for (int column = 0; column < kSide; ++column, to += stride) store(t[column], to);
  }
}

void transform_tile(const uint8_t *const *pixels, int64_t channels, const ClipqCodes &kind,
                    int16_t *to, int64_t stride) {
  const auto run = kind.flip ? (kind.offset ? transform<true, true> : transform<true, false>)
                             : (kind.offset ? transform<false, true> : transform<false, false>);
  for (int64_t channel = 0; channel < channels; channel += kChannels) {
    run(pixels, channel, static_cast<int16_t>(kind.offset), to + channel, stride);
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

// kLanes channels. Not inlined into their loop, ahead of which the compiler would put all addresses,
// more than there are registers.
__attribute__((noinline)) void restore(const int32_t *from, int64_t from_stride, int32_t *to,
                                       int64_t row_stride, int64_t step) {
  Ints half[kSide][kOut];
#pragma GCC unroll 6
  for (int row = 0; row < kSide; ++row) {
    Ints m[kSide];
#pragma GCC unroll 6
    for (int column = 0; column < kSide; ++column, from += from_stride) m[column] = load<Ints>(from);
    restore_line(m, half[row]);
  }
#pragma GCC unroll 4
  for (int column = 0; column < kOut; ++column) {
    Ints m[kSide], y[kOut];
#pragma GCC unroll 6
    for (int row = 0; row < kSide; ++row) m[row] = half[row][column];
    restore_line(m, y);
#pragma GCC unroll 4
    for (int row = 0; row < kOut; ++row) {
      store((y[row] * kInverseOf9) >> 6, to + row * row_stride + column * step);
    }
  }
}

void restore_tile(const int32_t *from, int64_t from_stride, int64_t lanes, int32_t *to,
                  int64_t row_stride, int64_t step) {
  for (int64_t lane = 0; lane < lanes; lane += kLanes) {
    restore(from + lane, from_stride, to + lane, row_stride, step);
  }
}
