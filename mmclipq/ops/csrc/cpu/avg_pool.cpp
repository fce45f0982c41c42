// Averages of windows of codes, with channels last: exact sums, one product with the inverse count.

#include <algorithm>
#include <cstdint>

#define CLIPQ_BODY "avg_pool_body.h"
#include "targets.h"

namespace {

constexpr int64_t kChannels = 64;  // of a task, one cache line of codes

// Those channels of one result.
void pool(const ClipqAvgPool &s, const uint8_t *image, int64_t row, int64_t column, uint8_t *dst,
          int64_t channels, const ClipqCodes &src_kind, const ClipqCodes &dst_kind) {
  int32_t sums[kChannels] = {};
  const int64_t top = row * s.step[0] - s.padding[0], left = column * s.step[1] - s.padding[1];
  const int64_t bottom = std::min(top + s.kernel[0], s.height);
  const int64_t right = std::min(left + s.kernel[1], s.width);
  for (int64_t y = std::max<int64_t>(top, 0); y < bottom; ++y) {
    const int64_t x = std::max<int64_t>(left, 0);
    CLIPQ_BEST(add_pixels)(image + (y * s.width + x) * s.channels, s.channels, right - x, sums,
                           channels, src_kind);
  }
  CLIPQ_BEST(average)(sums, s.inverse[row * s.columns + column], s.scale, dst, channels, dst_kind);
}

}  // namespace

void clipq_step(const ClipqAvgPool &s, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(s.src);
  auto *dst = buffers.at<uint8_t>(s.dst);
  const ClipqCodes src_kind(s.src_signed, s.src_offset), dst_kind(s.dst_signed, s.dst_offset);
  const int64_t parts = (s.channels + kChannels - 1) / kChannels;
#pragma omp parallel for collapse(3) schedule(static)
  for (int64_t image = 0; image < s.images; ++image) {
    for (int64_t row = 0; row < s.rows; ++row) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t c = part * kChannels, count = std::min(kChannels, s.channels - c);
        const uint8_t *from = src + image * s.height * s.width * s.channels + c;
        uint8_t *to = dst + (image * s.rows + row) * s.columns * s.stride + c;
        for (int64_t column = 0; column < s.columns; ++column) {
          pool(s, from, row, column, to + column * s.stride, count, src_kind, dst_kind);
        }
      }
    }
  }
}
