// The transforms of tiles of codes and of sums, see winograd.cpp: wrapping integer arithmetic.

#include "winograd.h"

#include <immintrin.h>

#include "api.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed by inlined functions alone
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // both of GCC 12's own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace clipq {
namespace {

constexpr int kSide = kWinogradSide, kOut = kWinogradOut, kPlaces = kSide * kSide;
constexpr int kChannels = 16;                // of a vector of codes
constexpr int32_t kInverseOf9 = 954437177;  // modulo 2^32

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2")
namespace wide {
constexpr int kLanes = 16;
#include "winograd_body.h"
}  // namespace wide
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2")
namespace narrow {
constexpr int kLanes = 8;
#include "winograd_body.h"
}  // namespace narrow
#pragma GCC pop_options

}  // namespace

void transform_tile(const uint8_t *const *pixels, int64_t channels, const ClipqCodes &kind,
                    int16_t *to, int64_t stride) {
  const auto run = clipq_generation() == 2 ? wide::transform_tile : narrow::transform_tile;
  run(pixels, channels, kind, to, stride);
}

void restore_tile(const int32_t *from, int64_t from_stride, int64_t lanes, int32_t *to,
                  int64_t row_stride, int64_t step) {
  const bool wide = clipq_generation() == 2 && lanes % wide::kLanes == 0;
  (wide ? wide::restore_tile : narrow::restore_tile)(from, from_stride, lanes, to, row_stride, step);
}

}  // namespace clipq
