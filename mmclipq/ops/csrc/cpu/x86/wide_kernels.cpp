// The innermost loops of the direct layers with AVX-512's VNNI: quadruples of codes, or pairs of
// 16-bit numbers, are multiplied and added to 32-bit sums by one instruction.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#ifdef CLIPQ_ONEDNN
#include <dnnl.hpp>
#endif

#include "direct.h"

#define CLIPQ_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace clipq {
namespace {

constexpr int64_t kWidePixels = 8;
constexpr int kLanes = 16;

template <bool kPairs>
CLIPQ_VNNI CLIPQ_INLINE __m512i added(__m512i sum, __m512i x, __m512i w) {
  return kPairs ? _mm512_dpwssd_epi32(sum, x, w) : _mm512_dpbusd_epi32(sum, x, w);
}

template <bool kPairs, int kVectors>
CLIPQ_VNNI CLIPQ_INLINE void sum_tile(const char *const x[kWidePixels], const int32_t *offsets,
                                      int64_t runs, int64_t steps, const char *weights,
                                      const int32_t *terms, int32_t *sums) {
  __m512i total[kWidePixels][kVectors];
#pragma GCC unroll 8
  for (int p = 0; p < kWidePixels; ++p) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) total[p][v] = _mm512_loadu_si512(terms + kLanes * v);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const char *from[kWidePixels];
#pragma GCC unroll 8
    for (int p = 0; p < kWidePixels; ++p) from[p] = x[p] + offsets[run];
    for (int64_t k = 0; k < steps; ++k) {
      __m512i w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(weights + 64 * v);
      weights += 64 * kVectors;
#pragma GCC unroll 8
      for (int p = 0; p < kWidePixels; ++p) {
        int32_t step;
        std::memcpy(&step, from[p] + 4 * k, sizeof(step));
        const __m512i b = _mm512_set1_epi32(step);
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) total[p][v] = added<kPairs>(total[p][v], b, w[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kWidePixels; ++p) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_si512(sums + (p * kVectors + v) * kLanes, total[p][v]);
    }
  }
}

template <bool kPairs, int kVectors>
CLIPQ_VNNI void sum_tiles(const char *numbers, const int32_t *starts, int64_t count,
                          const int32_t *offsets, int64_t runs, int64_t steps,
                          const char *weights, const int32_t *terms, int32_t *sums) {
  for (int64_t i = 0; i < count; i += kWidePixels) {
    const char *x[kWidePixels];  // beyond the last pixel the last one again, whose sums are not read
    for (int64_t p = 0; p < kWidePixels; ++p) x[p] = numbers + starts[std::min(i + p, count - 1)];
    sum_tile<kPairs, kVectors>(x, offsets, runs, steps, weights, terms,
                               sums + i * kVectors * kLanes);
  }
}

template <bool kPairs>
void sum_block(const char *numbers, const int32_t *starts, int64_t count, const int32_t *offsets,
               int64_t runs, int64_t steps, int64_t vectors, const char *weights,
               const int32_t *terms, int32_t *sums) {
  const auto sum = vectors == 3 ? sum_tiles<kPairs, 3>
                   : vectors == 2 ? sum_tiles<kPairs, 2>
                                  : sum_tiles<kPairs, 1>;
  sum(numbers, starts, count, offsets, runs, steps, weights, terms, sums);
}

// 8 pixels of 48 / kTogether channels each: lane l of the three vectors of a group of pixels belongs to
// channel l modulo their number of pixel l divided by it. A vector reaches into two pixels at most.
template <int kTogether>
CLIPQ_VNNI CLIPQ_INLINE void sum_groups(const char *const x[kWidePixels], const int32_t *offsets,
                                        int64_t runs, int64_t steps, const char *weights,
                                        const int32_t *terms, int32_t *sums) {
  constexpr int kVectors = 3, kGroups = kWidePixels / kTogether;
  constexpr int kChannels = kVectors * kLanes / kTogether;
  __m512i total[kGroups][kVectors];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) total[g][v] = _mm512_loadu_si512(terms + kLanes * v);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const char *from[kWidePixels];
#pragma GCC unroll 8
    for (int p = 0; p < kWidePixels; ++p) from[p] = x[p] + offsets[run];
    for (int64_t k = 0; k < steps; ++k) {
      __m512i w[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(weights + 64 * v);
      weights += 64 * kVectors;
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        __m512i b[kTogether];
#pragma GCC unroll 4
        for (int p = 0; p < kTogether; ++p) {
          int32_t step;
          std::memcpy(&step, from[g * kTogether + p] + 4 * k, sizeof(step));
          b[p] = _mm512_set1_epi32(step);
        }
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
          const int pixel = v * kLanes / kChannels, ends = (pixel + 1) * kChannels - v * kLanes;
          const __m512i both =
              ends >= kLanes ? b[pixel]
                             : _mm512_mask_blend_epi32(static_cast<__mmask16>((1 << ends) - 1),
                                                       b[(pixel + 1) % kTogether], b[pixel]);
          total[g][v] = added<false>(total[g][v], both, w[v]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_si512(sums + (g * kVectors + v) * kLanes, total[g][v]);
    }
  }
}

template <int kTogether>
CLIPQ_VNNI void sum_joined(const char *numbers, const int32_t *starts, int64_t count,
                           const int32_t *offsets, int64_t runs, int64_t steps, int64_t,
                           const char *weights, const int32_t *terms, int32_t *sums) {
  for (int64_t i = 0; i < count; i += kWidePixels) {
    const char *x[kWidePixels];
    for (int64_t p = 0; p < kWidePixels; ++p) x[p] = numbers + starts[std::min(i + p, count - 1)];
    sum_groups<kTogether>(x, offsets, runs, steps, weights, terms, sums + i * 48 / kTogether);
  }
}

}  // namespace

SumBlock sum_of_pixels(int64_t together) {
  return together == 4 ? sum_joined<4> : sum_joined<2>;
}

const Kernels &quad_kernels() {
  static const Kernels kernels{1, 4, kWidePixels, kLanes, 3, sum_block<false>};
  return kernels;
}

const Kernels &wide_pair_kernels() {
  static const Kernels kernels{2, 2, kWidePixels, kLanes, 3, sum_block<true>};
  return kernels;
}

bool has_wide_kernels() {
  if (clipq_generation() < 2 || !__builtin_cpu_supports("avx512vnni")) return false;
#ifdef CLIPQ_ONEDNN
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_vnni:
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_fp16: return true;
    default: return false;
  }
#else
  return true;
#endif
}

}  // namespace clipq
