// The innermost loop of the direct layers for one kind of registers, hence no include guard. Whoever
// includes this defines CLIPQ_TARGET, kPixels (most of a tile), kLanes (32-bit lanes of a register), Register, and
// load(from), store(to, v), broadcast<kNumbers>(from) of 32 bits, numbers_of<kChannels, kVector>(pixels)
// and added<kNumbers>(sum, x, w), sums of products.

template <int kCount>
struct Pixels {
  static constexpr int value = kCount;
};

// kPixels pixels, of which kTogether share kVectors registers: lane l of them belongs to pixel l divided
// by the channels of one, whose channel is the remainder. A register reaches into two pixels at most.
template <Numbers kNumbers, int kTogether, int kVectors, int kPixels>
CLIPQ_TARGET CLIPQ_INLINE void sum_tile(const char *const x[kPixels], const int32_t *offsets,
                                        int64_t runs, int64_t steps, const char *weights,
                                        const int32_t *terms, int32_t *sums) {
  constexpr int kGroups = kPixels / kTogether, kChannels = kVectors * kLanes / kTogether;
  Register total[kGroups][kVectors];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) total[g][v] = load(terms + kLanes * v);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const char *from[kPixels];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) from[p] = x[p] + offsets[run];
    for (int64_t k = 0; k < steps; ++k) {
      Register w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) w[v] = load(weights + 4 * kLanes * v);
      weights += 4 * kLanes * kVectors;
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) {
        Register b[kTogether];
#pragma GCC unroll 4
        for (int p = 0; p < kTogether; ++p) b[p] = broadcast<kNumbers>(from[g * kTogether + p] + 4 * k);
        if constexpr (kTogether == 1) {
#pragma GCC unroll 3
          for (int v = 0; v < kVectors; ++v) total[g][v] = added<kNumbers>(total[g][v], b[0], w[v]);
        } else {
          static_assert(kVectors == 3, "each vector's pixels are written out");
          total[g][0] = added<kNumbers>(total[g][0], numbers_of<kChannels, 0>(b), w[0]);
          total[g][1] = added<kNumbers>(total[g][1], numbers_of<kChannels, 1>(b), w[1]);
          total[g][2] = added<kNumbers>(total[g][2], numbers_of<kChannels, 2>(b), w[2]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) store(sums + (g * kVectors + v) * kLanes, total[g][v]);
  }
}

template <Numbers kNumbers, int kTogether, int kVectors>
CLIPQ_TARGET void sum_tiles(const char *numbers, const int32_t *starts, int64_t count,
                            const int32_t *offsets, int64_t runs, int64_t steps,
                            const char *weights, const int32_t *terms, int32_t *sums) {
  const auto sum = [&](auto pixels, int64_t i) __attribute__((always_inline)) CLIPQ_TARGET {
    constexpr int kSome = decltype(pixels)::value;
    const char *x[kSome];  // beyond the last pixel the last one again, whose sums are not read
    for (int64_t p = 0; p < kSome; ++p) x[p] = numbers + starts[std::min(i + p, count - 1)];
    sum_tile<kNumbers, kTogether, kVectors, kSome>(x, offsets, runs, steps, weights, terms,
                                                 sums + i * kVectors * kLanes / kTogether);
  };
  int64_t i = 0;
  for (; i + kPixels <= count; i += kPixels) sum(Pixels<kPixels>{}, i);
  if constexpr (kTogether == 1) {
    // A row of Winograd's tiles is short: what is left over goes by halves and one by one.
    if (i + kPixels / 2 <= count) {
      sum(Pixels<kPixels / 2>{}, i);
      i += kPixels / 2;
    }
    for (; i < count; ++i) sum(Pixels<1>{}, i);
  } else if (i < count) {
    sum(Pixels<kPixels>{}, i);
  }
}
