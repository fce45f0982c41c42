// Largest code of each window, with channels last.

#include <algorithm>
#include <vector>

#include "api.h"

namespace {

template <typename Code>
CLIPQ_INLINE void largest_of(const Code *x, Code *best, int64_t count) {
  for (int64_t c = 0; c < count; ++c) best[c] = std::max(best[c], x[c]);
}

CLIPQ_VECTORIZED void largest(const int8_t *x, int8_t *best, int64_t count) {
  largest_of(x, best, count);
}

CLIPQ_VECTORIZED void largest(const uint8_t *x, uint8_t *best, int64_t count) {
  largest_of(x, best, count);
}

// A line of the largest codes of the window's rows first, then the largest of its columns.
template <typename Code>
void max_pool(const ClipqMaxPool &s, const Code *src, Code *dst, Code smallest) {
  const int64_t length = s.width * s.channels;
#pragma omp parallel
  {
    std::vector<Code> line(static_cast<size_t>(length));
#pragma omp for collapse(2) schedule(static)
    for (int64_t image = 0; image < s.images; ++image) {
      for (int64_t row = 0; row < s.rows; ++row) {
        std::fill(line.begin(), line.end(), smallest);
        for (int64_t r = 0; r < s.kernel[0]; ++r) {
          const int64_t y = row * s.step[0] - s.padding[0] + r * s.dilation[0];
          if (y < 0 || y >= s.height) continue;
          largest(src + (image * s.height + y) * length, line.data(), length);
        }
        Code *out = dst + (image * s.rows + row) * s.columns * s.stride;
        for (int64_t column = 0; column < s.columns; ++column, out += s.stride) {
          std::fill(out, out + s.channels, smallest);
          for (int64_t q = 0; q < s.kernel[1]; ++q) {
            const int64_t x = column * s.step[1] - s.padding[1] + q * s.dilation[1];
            if (x < 0 || x >= s.width) continue;
            largest(line.data() + x * s.channels, out, s.channels);
          }
        }
      }
    }
  }
}

}  // namespace

void clipq_step(const ClipqMaxPool &spec, const ClipqBuffers &buffers) {
  if (spec.is_signed) {
    max_pool(spec, buffers.at<const int8_t>(spec.src), buffers.at<int8_t>(spec.dst), int8_t{-128});
  } else {
    max_pool(spec, buffers.at<const uint8_t>(spec.src), buffers.at<uint8_t>(spec.dst), uint8_t{0});
  }
}
