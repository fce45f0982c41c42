// Pixels to the codes of a graph's input, by a table, with padding, channels last.

#include <algorithm>

#include "api.h"

// One image; strides in bytes. Channel c of the result comes from channel `source[c]` and table c.
struct ClipqPixels {
  const uint8_t *pixels;
  int64_t rows, columns, channels;
  int64_t row_stride, column_stride, channel_stride;
  const uint8_t *tables;  // (channels, 256)
  const int64_t *source;
  uint8_t *codes;  // (height, width, channels)
  int64_t height, width;
  int32_t padding;  // the code behind the last row and column
};

namespace {

// Columns of one row; three channels are the usual case.
template <int kChannels>
void fill(const ClipqPixels &s, const uint8_t *const *from, int64_t step, uint8_t *to) {
  const int64_t channels = kChannels > 0 ? kChannels : s.channels;
  for (int64_t column = 0; column < s.columns; ++column) {
    for (int64_t c = 0; c < channels; ++c) {
      to[column * channels + c] = s.tables[256 * c + from[c][column * step]];
    }
  }
}

}  // namespace

// Returns 0 if there are more channels than it takes.
CLIPQ_API int32_t clipq_pixels(const ClipqPixels *spec) {
  constexpr int64_t kMost = 16;
  const ClipqPixels &s = *spec;
  if (s.channels > kMost) return 0;
  const auto padding = static_cast<uint8_t>(s.padding);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < s.height; ++row) {
    uint8_t *to = s.codes + row * s.width * s.channels;
    int64_t filled = 0;
    if (row < s.rows) {
      const uint8_t *from[kMost];
      for (int64_t c = 0; c < s.channels; ++c) {
        from[c] = s.pixels + row * s.row_stride + s.source[c] * s.channel_stride;
      }
      if (s.channels == 3 && s.column_stride == 1) {
        fill<3>(s, from, 1, to);
      } else {
        fill<0>(s, from, s.column_stride, to);
      }
      filled = s.columns * s.channels;
    }
    std::fill(to + filled, to + s.width * s.channels, padding);
  }
  return 1;
}
