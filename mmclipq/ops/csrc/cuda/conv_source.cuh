// What a thread of a convolution copies to shared memory: its lines' windows of the input, and its
// chunk's tap and channel.
#pragma once

#include "product.cuh"

template <typename Kernel>
struct ConvSource {
  static constexpr int kPixels = Kernel::kPixels, kOutputs = Kernel::kOutputs;
  static constexpr int kDepth = Kernel::kDepth, kLines = Kernel::kLines;
  static constexpr int kPassesM = Kernel::kPassesM, kPassesN = Kernel::kPassesN;

  int line, chunk, first_output;
  int top[kPassesM], left[kPassesM];
  int64_t first[kPassesM];  // pixel at the window's corner
  int row, column, channel;

  CLIPQ_DEVICE void start(const ProductArgs &p, int first_pixel, int output, int step) {
    line = device::thread() >> 2;
    chunk = device::thread() & 3;
    first_output = output;
    CLIPQ_UNROLL
    for (int i = 0; i < kPassesM; ++i) {
      const int l = line + i * kLines, m = first_pixel + l;
      const int image = m / (p.rows * p.columns), rest = m - image * p.rows * p.columns;
      const int y = rest / p.columns, x = rest - y * p.columns;
      // Far outside, where no tap of the kernel reaches the image.
      top[i] = m < p.pixels && l < kPixels ? y * p.step_y - p.padding_y : -(1 << 28);
      left[i] = x * p.step_x - p.padding_x;
      first[i] = (static_cast<int64_t>(image) * p.height + top[i]) * p.width + left[i];
    }
    const int depth = step * kDepth + chunk * 16, tap = depth / p.channels;
    channel = depth - tap * p.channels;
    row = tap / p.kernel_x;
    column = tap - row * p.kernel_x;
  }

  CLIPQ_DEVICE const uint8_t *find(const ProductArgs &p, int i, int r, int s, int c, bool &inside) const {
    const int y = r * p.dilation_y, x = s * p.dilation_x;
    inside = r < p.kernel_y && static_cast<unsigned>(top[i] + y) < static_cast<unsigned>(p.height) &&
             static_cast<unsigned>(left[i] + x) < static_cast<unsigned>(p.width);
    if (!inside && p.outside != nullptr) {
      inside = true;
      return p.outside;
    }
    if (!inside) return p.src;
    return p.src + (first[i] + static_cast<int64_t>(y) * p.width + x) * p.src_stride + c;
  }

  // Starts the copies of one step; wide steps must come in order.
  CLIPQ_DEVICE void copy(const ProductArgs &p, int step, uint8_t *stage) {
    bool inside;
    if (Kernel::kFewChannels) {  // a pixel has 4 channels, so a chunk holds four taps
      CLIPQ_UNROLL
      for (int v = 0; v < 4; ++v) {
        const int tap = step * 16 + chunk * 4 + v, r = tap / p.kernel_x, s = tap - r * p.kernel_x;
        CLIPQ_UNROLL
        for (int i = 0; i < kPassesM; ++i) {
          if (kPassesM * kLines != kPixels && line + i * kLines >= kPixels) continue;
          const uint8_t *from = find(p, i, r, s, 0, inside);
          device::copy4(stage + Kernel::place(line + i * kLines, chunk) + v * 4, from, inside);
        }
      }
    } else {
      CLIPQ_UNROLL
      for (int i = 0; i < kPassesM; ++i) {
        if (kPassesM * kLines != kPixels && line + i * kLines >= kPixels) continue;
        const uint8_t *from = find(p, i, row, column, channel, inside);
        device::copy16(stage + Kernel::place(line + i * kLines, chunk), from, inside);
      }
      channel += kDepth;
      while (channel >= p.channels) {
        channel -= p.channels;
        if (++column == p.kernel_x) {
          column = 0;
          ++row;
        }
      }
    }
    uint8_t *weights = stage + kPixels * kDepth;
    CLIPQ_UNROLL
    for (int i = 0; i < kPassesN; ++i) {
      if (kPassesN * kLines != kOutputs && line + i * kLines >= kOutputs) continue;
      const int64_t output = first_output + line + i * kLines;
      device::copy16(weights + Kernel::place(line + i * kLines, chunk),
                     p.weight + output * p.depth + step * kDepth + chunk * 16, true);
    }
  }
};
