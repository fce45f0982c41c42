// The innermost loops of the direct layers with AVX2.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "direct.h"

#define CLIPQ_TARGET __attribute__((target("avx2")))

namespace clipq {
namespace {

constexpr int kPixels = 6, kLanes = 8;
typedef __m256i Register;

CLIPQ_TARGET CLIPQ_INLINE Register load(const void *from) {
  return _mm256_loadu_si256(static_cast<const __m256i *>(from));
}

CLIPQ_TARGET CLIPQ_INLINE void store(int32_t *to, Register v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), v);
}

template <Numbers>
CLIPQ_TARGET CLIPQ_INLINE Register broadcast(const char *from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return _mm256_set1_epi32(pair);
}

template <Numbers>
CLIPQ_TARGET CLIPQ_INLINE Register added(Register sum, Register x, Register w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}

// Pixels never share a register.
template <int kChannels, int kVector>
CLIPQ_TARGET CLIPQ_INLINE Register numbers_of(const Register *pixels) {
  return *pixels;
}

#include "sum_body.h"

void sum_block(const char *numbers, const int32_t *starts, int64_t count, const int32_t *offsets,
               int64_t runs, int64_t pairs, int64_t vectors, const char *weights,
               const int32_t *terms, int32_t *sums) {
  const auto sum = vectors == 2 ? sum_tiles<kPairs, 1, 2> : sum_tiles<kPairs, 1, 1>;
  sum(numbers, starts, count, offsets, runs, pairs, weights, terms, sums);
}

// Sums of two pixels of 16 channels; within halves of registers channels alternate.
template <int kPairs>
CLIPQ_TARGET CLIPQ_INLINE void sum_two(const char *a, const char *b, const int32_t *offsets,
                                     int64_t pairs, const char *weights, int32_t *sums) {
  __m256i total[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                         {_mm256_setzero_si256(), _mm256_setzero_si256()}};
  const int64_t count = kPairs ? kPairs : pairs;
#pragma GCC unroll 5
  for (int64_t k = 0; k < count; ++k) {
    const __m256i low = load(weights + 64 * k), high = load(weights + 64 * k + 32);
    const int64_t one = offsets[2 * k], two = offsets[2 * k + 1];
    const __m256i a_one = load(a + one), a_two = load(a + two);
    const __m256i b_one = load(b + one), b_two = load(b + two);
    const auto add = [](__m256i &sum, __m256i x, __m256i w) __attribute__((target("avx2"))) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
    };
    add(total[0][0], _mm256_unpacklo_epi16(a_one, a_two), low);
    add(total[0][1], _mm256_unpackhi_epi16(a_one, a_two), high);
    add(total[1][0], _mm256_unpacklo_epi16(b_one, b_two), low);
    add(total[1][1], _mm256_unpackhi_epi16(b_one, b_two), high);
  }
  for (int p = 0; p < 2; ++p) {
    auto *to = reinterpret_cast<__m256i *>(sums + p * kBlock);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(total[p][0], total[p][1], 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(total[p][0], total[p][1], 0x31));
  }
}

template <int kPairs>
CLIPQ_TARGET void sum_twos(const char *numbers, const int32_t *starts, int64_t count,
                         const int32_t *offsets, int64_t pairs, const char *weights,
                         int32_t *sums) {
  for (int64_t i = 0; i < count; i += 2) {
    sum_two<kPairs>(numbers + starts[i], numbers + starts[std::min(i + 1, count - 1)], offsets,
                    pairs, weights, sums + i * kBlock);
  }
}

}  // namespace

bool has_direct_layers() { return __builtin_cpu_supports("avx2"); }

const Kernels &pair_kernels() {
  static const Kernels kernels{2, 2, kPixels, kLanes, 2, sum_block};
  return kernels;
}

void sum_depthwise(const char *numbers, const int32_t *starts, int64_t count,
                   const int32_t *offsets, int64_t pairs, const char *weights, int32_t *sums) {
  if (pairs == 5) {
    sum_twos<5>(numbers, starts, count, offsets, pairs, weights, sums);
  } else {
    sum_twos<0>(numbers, starts, count, offsets, pairs, weights, sums);
  }
}

}  // namespace clipq
