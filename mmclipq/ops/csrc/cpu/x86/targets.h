// Compiles the file named CLIPQ_BODY once for each kind of processor, each time in a namespace of its
// own: v4 with AVX-512, v3 with AVX2, v1 with what every x86-64 has. CLIPQ_BEST(name) is the function
// of this processor.
#include <immintrin.h>

#include "api.h"
#include "codes.h"

#define CLIPQ_BEST(name) \
  (clipq_generation() == 2 ? v4::name : clipq_generation() == 1 ? v3::name : v1::name)

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed by inlined functions alone
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // both of GCC 12's own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace {
typedef __m128i Packed;  // codes of up to 16 lanes
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,bmi,bmi2")
namespace {
namespace v4 {
constexpr int kLanes = 16;
typedef __m512i Words;
CLIPQ_INLINE __m512 minimum(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
CLIPQ_INLINE __m512 maximum(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
CLIPQ_INLINE __m128i last_bytes(__m512i v) { return _mm512_cvtepi32_epi8(v); }
CLIPQ_INLINE __m512i widened(__m128i bytes) { return _mm512_cvtepu8_epi32(bytes); }
#define CLIPQ_AVX512 1
#include "vector.h"
#include CLIPQ_BODY
#undef CLIPQ_AVX512
}  // namespace v4
}  // namespace
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,f16c,bmi,bmi2")
namespace {
namespace v3 {
constexpr int kLanes = 8;
typedef __m256i Words;
CLIPQ_INLINE __m256 minimum(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
CLIPQ_INLINE __m256 maximum(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
CLIPQ_INLINE __m256i widened(__m128i bytes) { return _mm256_cvtepu8_epi32(bytes); }
CLIPQ_INLINE __m128i last_bytes(__m256i v) {
  v = _mm256_and_si256(v, _mm256_set1_epi32(255));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return _mm_packus_epi16(words, words);
}
#include "vector.h"
#include CLIPQ_BODY
}  // namespace v3
}  // namespace
#pragma GCC pop_options

namespace {
namespace v1 {
constexpr int kLanes = 4;
typedef __m128i Words;
CLIPQ_INLINE __m128 minimum(__m128 a, __m128 b) { return _mm_min_ps(a, b); }
CLIPQ_INLINE __m128 maximum(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
CLIPQ_INLINE __m128i widened(__m128i bytes) {
  const __m128i zero = _mm_setzero_si128();
  return _mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero);
}
CLIPQ_INLINE __m128i last_bytes(__m128i v) {
  v = _mm_and_si128(v, _mm_set1_epi32(255));
  const __m128i words = _mm_packs_epi32(v, v);
  return _mm_packus_epi16(words, words);
}
#include "vector.h"
#include CLIPQ_BODY
}  // namespace v1
}  // namespace
