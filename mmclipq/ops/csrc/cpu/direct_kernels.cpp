// The innermost loops of the direct layers, and the order of their weights.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "direct.h"

#define CLIPQ_AVX2 __attribute__((target("avx2")))

namespace clipq {
namespace {

CLIPQ_AVX2 CLIPQ_INLINE __m256i load(const void *from) {
  return _mm256_loadu_si256(static_cast<const __m256i *>(from));
}

CLIPQ_AVX2 CLIPQ_INLINE __m256i pair_of(const int16_t *from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return _mm256_set1_epi32(pair);
}

template <int kVectors>
CLIPQ_AVX2 CLIPQ_INLINE void sum_tile(const int16_t *const x[kPixels], const int32_t *offsets,
                                      int64_t runs, int64_t pairs, const int16_t *weights,
                                      int32_t *sums) {
  __m256i total[kPixels][kVectors];
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) total[p][v] = _mm256_setzero_si256();
  }
  for (int64_t run = 0; run < runs; ++run) {
    const int16_t *from[kPixels];
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) from[p] = x[p] + offsets[run];
    for (int64_t k = 0; k < pairs; ++k) {
      __m256i w[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) w[v] = load(weights + 16 * v);
      weights += 16 * kVectors;
#pragma GCC unroll 6
      for (int p = 0; p < kPixels; ++p) {
        const __m256i b = pair_of(from[p] + 2 * k);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          total[p][v] = _mm256_add_epi32(total[p][v], _mm256_madd_epi16(b, w[v]));
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(sums + p * kBlock + 8 * v), total[p][v]);
    }
  }
}

template <int kVectors>
CLIPQ_AVX2 void sum_tiles(const int16_t *numbers, const int32_t *starts, int64_t count,
                          const int32_t *offsets, int64_t runs, int64_t pairs,
                          const int16_t *weights, int32_t *sums) {
  for (int64_t i = 0; i < count; i += kPixels) {
    const int16_t *x[kPixels];  // beyond the last pixel the last one again, whose sums are not read
    for (int64_t p = 0; p < kPixels; ++p) x[p] = numbers + starts[std::min(i + p, count - 1)];
    sum_tile<kVectors>(x, offsets, runs, pairs, weights, sums + i * kBlock);
  }
}

// Sums of two pixels of 16 channels; within halves of registers channels alternate.
template <int kPairs>
CLIPQ_AVX2 CLIPQ_INLINE void sum_two(const int16_t *a, const int16_t *b, const int32_t *offsets,
                                     int64_t pairs, const int16_t *weights, int32_t *sums) {
  __m256i total[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                         {_mm256_setzero_si256(), _mm256_setzero_si256()}};
  const int64_t count = kPairs ? kPairs : pairs;
#pragma GCC unroll 5
  for (int64_t k = 0; k < count; ++k) {
    const __m256i low = load(weights + 32 * k), high = load(weights + 32 * k + 16);
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
CLIPQ_AVX2 void sum_twos(const int16_t *numbers, const int32_t *starts, int64_t count,
                         const int32_t *offsets, int64_t pairs, const int16_t *weights,
                         int32_t *sums) {
  for (int64_t i = 0; i < count; i += 2) {
    sum_two<kPairs>(numbers + starts[i], numbers + starts[std::min(i + 1, count - 1)], offsets,
                    pairs, weights, sums + i * kBlock);
  }
}

}  // namespace

void sum_block(const int16_t *numbers, const int32_t *starts, int64_t count,
               const int32_t *offsets, int64_t runs, int64_t pairs, int64_t vectors,
               const int16_t *weights, int32_t *sums) {
  if (vectors == 2) {
    sum_tiles<2>(numbers, starts, count, offsets, runs, pairs, weights, sums);
  } else {
    sum_tiles<1>(numbers, starts, count, offsets, runs, pairs, weights, sums);
  }
}

void sum_depthwise(const int16_t *numbers, const int32_t *starts, int64_t count,
                   const int32_t *offsets, int64_t pairs, const int16_t *weights, int32_t *sums) {
  if (pairs == 5) {
    sum_twos<5>(numbers, starts, count, offsets, pairs, weights, sums);
  } else {
    sum_twos<0>(numbers, starts, count, offsets, pairs, weights, sums);
  }
}

// [block][run][pair][channel][2]; a run is a row of the kernel where its taps lie side by side in the
// source, else one tap.
std::shared_ptr<const PackedWeights> pack_blocks(const ClipqProduct &spec, const int8_t *weights) {
  auto packed = std::make_shared<PackedWeights>();
  const int64_t *kernel = spec.kernel;
  const int64_t depth = spec.channels / spec.groups, outputs = spec.outputs / spec.groups;
  packed->joined = spec.groups == 1 && spec.dilation[1] == 1;
  const int64_t taps = packed->joined ? kernel[1] : 1;  // of a run
  const int64_t runs = kernel[0] * kernel[1] / taps;
  packed->pairs = (taps * depth + 1) / 2;
  for (int64_t group = 0; group < spec.groups; ++group) {
    for (int64_t first = 0; first < outputs; first += kBlock) {
      Block block{group * outputs + first, std::min(kBlock, outputs - first), group * depth, 2,
                  static_cast<int64_t>(packed->numbers.size())};
      if (block.count <= 8) block.vectors = 1;
      const int64_t lanes = 8 * block.vectors;
      packed->numbers.resize(packed->numbers.size() +
                             static_cast<size_t>(runs * packed->pairs * lanes * 2));
      int16_t *to = packed->numbers.data() + block.weights;
      for (int64_t run = 0; run < runs; ++run) {
        for (int64_t k = 0; k < taps * depth; ++k) {
          const int64_t tap = run * taps + k / depth, c = k % depth;
          for (int64_t o = 0; o < block.count; ++o) {
            to[((run * packed->pairs + k / 2) * lanes + o) * 2 + k % 2] =
                weights[((block.first + o) * depth + c) * kernel[0] * kernel[1] + tap];
          }
        }
      }
      packed->blocks.push_back(block);
    }
  }
  return packed;
}

// [block][pair of taps][low, high][channel][2], channels as unpacking leaves them.
std::shared_ptr<const PackedWeights> pack_depthwise(const ClipqProduct &spec,
                                                    const int8_t *weights) {
  auto packed = std::make_shared<PackedWeights>();
  const int64_t taps = spec.kernel[0] * spec.kernel[1], pairs = (taps + 1) / 2;
  for (int64_t first = 0; first < spec.outputs; first += kBlock) {
    const Block block{first, std::min(kBlock, spec.outputs - first), first, 2,
                      static_cast<int64_t>(packed->numbers.size())};
    packed->numbers.resize(packed->numbers.size() + static_cast<size_t>(pairs * 32));
    int16_t *to = packed->numbers.data() + block.weights;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t c = 0; c < block.count; ++c) {
        const int64_t high = c % 8 / 4, lane = c % 4 + c / 8 * 4;
        to[(tap / 2 * 2 + high) * 16 + lane * 2 + tap % 2] = weights[(first + c) * taps + tap];
      }
    }
    packed->blocks.push_back(block);
  }
  return packed;
}

}  // namespace clipq

CLIPQ_VECTORIZED void clipq_widen(const uint8_t *codes, int16_t *numbers, int64_t count,
                                  const ClipqCodes &kind) {
  const uint8_t flip = static_cast<uint8_t>(kind.flip);
  const int16_t less = static_cast<int16_t>(kind.subtrahend);
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = static_cast<int16_t>(static_cast<int16_t>(codes[i] ^ flip) - less);
  }
}
