// The innermost loops of the direct layers with NEON: with Armv8.2's dot products four codes and weights
// are multiplied and added at once, without them pairs of 16-bit numbers.

#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#include "direct.h"

#define CLIPQ_DOT __attribute__((target("arch=armv8.2-a+dotprod")))

namespace clipq {
namespace {

// With four vectors of sums for each pixel 24 of the 32 registers hold sums.
constexpr int64_t kPixels = 6;
constexpr int kQuadLanes = 4, kPairLanes = 8;

// Adds the products of step `lane` of four that `x` has of each pixel.
template <int kLane, int kVectors>
CLIPQ_DOT CLIPQ_INLINE void add_quads(int32x4_t total[kPixels][kVectors], const int8x16_t x[kPixels],
                                      const char *weights) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const int8x16_t w =
        vld1q_s8(reinterpret_cast<const int8_t *>(weights) + 16 * (kLane * kVectors + v));
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) {
      total[p][v] = vdotq_laneq_s32(total[p][v], w, x[p], kLane);
    }
  }
}

template <int kVectors>
CLIPQ_DOT void sum_quads(const char *const x[kPixels], const int32_t *offsets, int64_t runs,
                         int64_t steps, const char *weights, const int32_t *terms, int32_t *sums) {
  int32x4_t total[kPixels][kVectors];
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[p][v] = vld1q_s32(terms + kQuadLanes * v);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const char *from[kPixels];
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) from[p] = x[p] + offsets[run];
    int64_t k = 0;
    int8x16_t some[kPixels];
    for (; k + 4 <= steps; k += 4) {
#pragma GCC unroll 6
      for (int p = 0; p < kPixels; ++p) {
        some[p] = vld1q_s8(reinterpret_cast<const int8_t *>(from[p]) + 4 * k);
      }
      add_quads<0>(total, some, weights);
      add_quads<1>(total, some, weights);
      add_quads<2>(total, some, weights);
      add_quads<3>(total, some, weights);
      weights += 64 * kVectors;
    }
    for (; k < steps; ++k, weights += 16 * kVectors) {
#pragma GCC unroll 6
      for (int p = 0; p < kPixels; ++p) {
        int32_t four;
        std::memcpy(&four, from[p] + 4 * k, sizeof(four));
        some[p] = vreinterpretq_s8_s32(vdupq_n_s32(four));
      }
      add_quads<0>(total, some, weights);
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      vst1q_s32(sums + (p * kVectors + v) * kQuadLanes, total[p][v]);
    }
  }
}

// Eight channels of each vector of pairs; loading takes the first and the second weights apart.
template <int kVectors>
inline void sum_pairs(const char *const x[kPixels], const int32_t *offsets, int64_t runs,
                      int64_t pairs, const char *weights, const int32_t *terms, int32_t *sums) {
  int32x4_t total[kPixels][kVectors][2];
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      total[p][v][0] = vld1q_s32(terms + kPairLanes * v);
      total[p][v][1] = vld1q_s32(terms + kPairLanes * v + 4);
    }
  }
  for (int64_t run = 0; run < runs; ++run) {
    const char *from[kPixels];
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) from[p] = x[p] + offsets[run];
    for (int64_t k = 0; k < pairs; ++k) {
      int16x8x2_t w[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        w[v] = vld2q_s16(reinterpret_cast<const int16_t *>(weights) + 16 * v);
      }
      weights += 32 * kVectors;
#pragma GCC unroll 6
      for (int p = 0; p < kPixels; ++p) {
        int16_t pair[2];
        std::memcpy(pair, from[p] + 4 * k, sizeof(pair));
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            total[p][v][0] = vmlal_n_s16(total[p][v][0], vget_low_s16(w[v].val[i]), pair[i]);
            total[p][v][1] = vmlal_n_s16(total[p][v][1], vget_high_s16(w[v].val[i]), pair[i]);
          }
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      vst1q_s32(sums + (p * kVectors + v) * kPairLanes, total[p][v][0]);
      vst1q_s32(sums + (p * kVectors + v) * kPairLanes + 4, total[p][v][1]);
    }
  }
}

using SumTile = void (*)(const char *const x[kPixels], const int32_t *offsets, int64_t runs,
                         int64_t steps, const char *weights, const int32_t *terms, int32_t *sums);

// A call for each tile, because what is compiled for dot products cannot become part of what is not.
void sum_tiles(SumTile sum, int64_t lanes, const char *numbers, const int32_t *starts, int64_t count,
               const int32_t *offsets, int64_t runs, int64_t steps, const char *weights,
               const int32_t *terms, int32_t *sums) {
  for (int64_t i = 0; i < count; i += kPixels) {
    const char *x[kPixels];  // beyond the last pixel the last one again, whose sums are not read
    for (int64_t p = 0; p < kPixels; ++p) x[p] = numbers + starts[std::min(i + p, count - 1)];
    sum(x, offsets, runs, steps, weights, terms, sums + i * lanes);
  }
}

void sum_quad_block(const char *numbers, const int32_t *starts, int64_t count,
                    const int32_t *offsets, int64_t runs, int64_t steps, int64_t vectors,
                    const char *weights, const int32_t *terms, int32_t *sums) {
  const SumTile kinds[] = {sum_quads<1>, sum_quads<2>, sum_quads<3>, sum_quads<4>};
  sum_tiles(kinds[vectors - 1], vectors * kQuadLanes, numbers, starts, count, offsets, runs, steps,
            weights, terms, sums);
}

void sum_pair_block(const char *numbers, const int32_t *starts, int64_t count,
                    const int32_t *offsets, int64_t runs, int64_t pairs, int64_t vectors,
                    const char *weights, const int32_t *terms, int32_t *sums) {
  sum_tiles(vectors == 2 ? sum_pairs<2> : sum_pairs<1>, vectors * kPairLanes, numbers, starts, count,
            offsets, runs, pairs, weights, terms, sums);
}

}  // namespace

bool has_direct_layers() { return true; }

bool has_wide_kernels() { return clipq_generation() > 0; }

const Kernels &quad_kernels() {
  static const Kernels kernels{1, 4, kPixels, kQuadLanes, 4, sum_quad_block, 128};
  return kernels;
}

const Kernels &pair_kernels() {
  static const Kernels kernels{2, 2, kPixels, kPairLanes, 2, sum_pair_block};
  return kernels;
}

// Vectors of four channels are never half empty.
SumBlock sum_of_pixels(int64_t) { return nullptr; }

// Weights lie as pack_depthwise says: the first eight pairs are those of channels 0 to 3 and 8 to 11.
void sum_depthwise(const char *numbers, const int32_t *starts, int64_t count,
                   const int32_t *offsets, int64_t pairs, const char *weights, int32_t *sums) {
  for (int64_t i = 0; i < count; ++i) {
    int32x4_t total[4] = {};
    for (int64_t k = 0; k < pairs; ++k) {
      const auto *w = reinterpret_cast<const int16_t *>(weights + 64 * k);
      const int16x8x2_t even = vld2q_s16(w), odd = vld2q_s16(w + 16);
      for (int tap = 0; tap < 2; ++tap) {
        const auto *x =
            reinterpret_cast<const int16_t *>(numbers + starts[i] + offsets[2 * k + tap]);
        const int16x8_t low = vld1q_s16(x), high = vld1q_s16(x + 8);
        total[0] = vmlal_s16(total[0], vget_low_s16(low), vget_low_s16(even.val[tap]));
        total[1] = vmlal_s16(total[1], vget_high_s16(low), vget_low_s16(odd.val[tap]));
        total[2] = vmlal_s16(total[2], vget_low_s16(high), vget_high_s16(even.val[tap]));
        total[3] = vmlal_s16(total[3], vget_high_s16(high), vget_high_s16(odd.val[tap]));
      }
    }
    for (int v = 0; v < 4; ++v) vst1q_s32(sums + i * kBlock + 4 * v, total[v]);
  }
}

// Winograd's form multiplies pairs of 16-bit numbers, a quarter as many: with dot products, which
// multiply four times as many codes, nothing is won.
bool winograd_fits(const ClipqProduct &, const int8_t *) { return false; }
bool is_faster_by_winograd(const ClipqProduct &, const Shape &, bool) { return false; }
std::unique_ptr<Layer> winograd_layer(const ClipqProduct &, const int8_t *, const float *,
                                      const float *) {
  return nullptr;
}

}  // namespace clipq
