// Transforms of the tiles of Winograd's F(4x4, 3x3).
#pragma once

#include <cstdint>

#include "codes.h"

namespace clipq {

constexpr int kWinogradSide = 6, kWinogradOut = 4;

// B^T d B of a tile of codes less their offset: `channels`, a multiple of 16, from the pointers of its 36
// pixels on. Places lie `stride` items apart.
void transform_tile(const uint8_t *const *pixels, int64_t channels, const ClipqCodes &kind,
                    int16_t *to, int64_t stride);

// Sums of 4x4 pixels, `step` and `row_stride` items apart, from those of the 36 places, which lie
// `from_stride` apart; `lanes` channels, a multiple of 8.
void restore_tile(const int32_t *from, int64_t from_stride, int64_t lanes, int32_t *to,
                  int64_t row_stride, int64_t step);

}  // namespace clipq
