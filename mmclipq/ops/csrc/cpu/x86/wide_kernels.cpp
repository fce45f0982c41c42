// The innermost loops of the direct layers with AVX-512's VNNI: quadruples of codes, or pairs of
// 16-bit numbers, are multiplied and added to 32-bit sums by one instruction.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#ifdef CLIPQ_ONEDNN
#include <dnnl.hpp>
#endif

#include "direct.h"

#define CLIPQ_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace clipq {
namespace {

constexpr int kPixels = 8, kLanes = 16;
typedef __m512i Register;

CLIPQ_TARGET CLIPQ_INLINE Register load(const void *from) { return _mm512_loadu_si512(from); }
CLIPQ_TARGET CLIPQ_INLINE void store(int32_t *to, Register v) { _mm512_storeu_si512(to, v); }

template <Numbers kNumbers>
CLIPQ_TARGET CLIPQ_INLINE Register broadcast(const char *from) {
  int32_t step;
  std::memcpy(&step, from, sizeof(step));
  const Register v = _mm512_set1_epi32(step);
  return kNumbers == kSignedQuads ? _mm512_xor_si512(v, _mm512_set1_epi8(-128)) : v;
}

template <Numbers kNumbers>
CLIPQ_TARGET CLIPQ_INLINE Register added(Register sum, Register x, Register w) {
  return kNumbers == kPairs ? _mm512_dpwssd_epi32(sum, x, w) : _mm512_dpbusd_epi32(sum, x, w);
}

// Numbers of the pixels, of kChannels each, that lanes of register kVector belong to.
template <int kChannels, int kVector>
CLIPQ_TARGET CLIPQ_INLINE Register numbers_of(const Register *pixels) {
  constexpr int kPixel = kVector * kLanes / kChannels;
  constexpr int kFirst = (kPixel + 1) * kChannels - kVector * kLanes;
  if constexpr (kFirst >= kLanes) return pixels[kPixel];
  return _mm512_mask_blend_epi32(static_cast<__mmask16>((1 << kFirst) - 1), pixels[kPixel + 1],
                                 pixels[kPixel]);
}

#include "sum_body.h"

template <Numbers kNumbers>
void sum_block(const char *numbers, const int32_t *starts, int64_t count, const int32_t *offsets,
               int64_t runs, int64_t steps, int64_t vectors, const char *weights,
               const int32_t *terms, int32_t *sums) {
  const auto sum = vectors == 3 ? sum_tiles<kNumbers, 1, 3>
                   : vectors == 2 ? sum_tiles<kNumbers, 1, 2>
                                  : sum_tiles<kNumbers, 1, 1>;
  sum(numbers, starts, count, offsets, runs, steps, weights, terms, sums);
}

template <int kTogether>
void sum_joined(const char *numbers, const int32_t *starts, int64_t count, const int32_t *offsets,
                int64_t runs, int64_t steps, int64_t, const char *weights, const int32_t *terms,
                int32_t *sums) {
  sum_tiles<kQuads, kTogether, 3>(numbers, starts, count, offsets, runs, steps, weights, terms, sums);
}

}  // namespace

SumBlock sum_of_pixels(int64_t together) {
  return together == 4 ? sum_joined<4> : sum_joined<2>;
}

const Kernels &quad_kernels() {
  static const Kernels kernels{1, 4, kPixels, kLanes, 3, sum_block<kQuads>, 0,
                               sum_block<kSignedQuads>};
  return kernels;
}

const Kernels &wide_pair_kernels() {
  static const Kernels kernels{2, 2, kPixels, kLanes, 3, sum_block<kPairs>};
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
