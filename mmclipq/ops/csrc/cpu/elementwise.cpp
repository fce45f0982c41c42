// Sums, products, conversions and copies of int8 and uint8 codes with channels last, as the reference
// backend computes them: each float32 operation rounded on its own, none contracted.

#include <algorithm>
#include <cstring>

#define CLIPQ_BODY "elementwise_body.h"
#include "targets.h"

namespace {

constexpr int64_t kBlock = 1 << 13;

// Calls body(first item, its place in the result, items) for pieces of a result in parallel.
template <typename Body>
void for_blocks(const ClipqRows &rows, Body body) {
  const bool dense = rows.stride == rows.channels;
  const int64_t length = dense ? rows.rows * rows.channels : rows.channels;
  const int64_t count = dense ? 1 : rows.rows;
  const int64_t pieces = (length + kBlock - 1) / kBlock;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * kBlock;
      body(row * length + first, row * rows.stride + first, std::min(kBlock, length - first));
    }
  }
}

// Codes of the three colours side by side.
CLIPQ_VECTORIZED void interleave(const uint8_t *a, const uint8_t *b, const uint8_t *c, uint8_t *to,
                                 int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[3 * i] = a[i];
    to[3 * i + 1] = b[i];
    to[3 * i + 2] = c[i];
  }
}

// Each plane becomes codes by itself, then its codes go to their places among the channels.
void quantize_planes(const ClipqQuantize &spec, const float *src, uint8_t *dst) {
  const ClipqCodes kind(spec.dst_signed, spec.dst_offset);
  const int64_t channels = spec.rows.channels, stride = spec.rows.stride;
  const int64_t images = spec.rows.rows / std::max<int64_t>(spec.pixels, 1);
  constexpr int64_t kPixels = 1024;
  const int64_t pieces = (spec.pixels + kPixels - 1) / kPixels;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * kPixels, count = std::min(kPixels, spec.pixels - first);
      const auto quantize = [&](int64_t c, uint8_t *codes) {
        CLIPQ_BEST(quantize)(src + (image * channels + c) * spec.pixels + first, codes, count,
                             spec.scale, kind);
      };
      if (channels == 3 && stride == 3) {
        uint8_t codes[3][kPixels];
        for (int64_t c = 0; c < 3; ++c) quantize(c, codes[c]);
        interleave(codes[0], codes[1], codes[2], dst + (image * spec.pixels + first) * 3, count);
        continue;
      }
      uint8_t codes[kPixels];
      for (int64_t c = 0; c < channels; ++c) {
        quantize(c, codes);
        uint8_t *out = dst + (image * spec.pixels + first) * stride + c;
        for (int64_t i = 0; i < count; ++i) out[i * stride] = codes[i];
      }
    }
  }
}

}  // namespace

void clipq_step(const ClipqSum &spec, const ClipqBuffers &buffers) {
  const auto *a = buffers.at<const uint8_t>(spec.a), *b = buffers.at<const uint8_t>(spec.b);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  for_blocks(spec.rows, [&](int64_t from, int64_t to, int64_t count) {
    CLIPQ_BEST(sum)(spec, a + from, b == nullptr ? nullptr : b + from, dst + to, count);
  });
}

void clipq_step(const ClipqPairwise &spec, const ClipqBuffers &buffers) {
  const auto *a = buffers.at<const uint8_t>(spec.a), *b = buffers.at<const uint8_t>(spec.b);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  // Rows of pixels where both sources and the result go on without gaps.
  const int64_t c = spec.channels;
  const bool dense = spec.a_strides[3] && spec.b_strides[3] && spec.stride == c &&
                     spec.a_strides[2] == c && spec.b_strides[2] == c;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < spec.images; ++image) {
    for (int64_t row = 0; row < spec.rows; ++row) {
      const auto *x = a + image * spec.a_strides[0] + row * spec.a_strides[1];
      const auto *y = b + image * spec.b_strides[0] + row * spec.b_strides[1];
      auto *to = dst + (image * spec.rows + row) * spec.columns * spec.stride;
      if (dense) {
        CLIPQ_BEST(pairwise)(spec, x, y, to, 1, spec.columns * c);
      } else {
        CLIPQ_BEST(pairwise)(spec, x, y, to, spec.columns, c);
      }
    }
  }
}

void clipq_step(const ClipqQuantize &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const float>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  if (spec.planes) return quantize_planes(spec, src, dst);
  const ClipqCodes kind(spec.dst_signed, spec.dst_offset);
  for_blocks(spec.rows, [&](int64_t from, int64_t to, int64_t count) {
    CLIPQ_BEST(quantize)(src + from, dst + to, count, spec.scale, kind);
  });
}

void clipq_step(const ClipqDequantize &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<float>(spec.dst);
  const ClipqCodes kind(spec.src_signed, spec.src_offset);
  for_blocks({1, spec.count, spec.count}, [&](int64_t from, int64_t to, int64_t count) {
    CLIPQ_BEST(dequantize)(src + from, dst + to, count, spec.step, kind);
  });
}

void clipq_step(const ClipqLookup &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<char>(spec.dst);
  const auto *table = static_cast<const char *>(spec.table);
  for_blocks(spec.rows, [&](int64_t from, int64_t to, int64_t count) {
    if (spec.size == 1) {
      for (int64_t i = 0; i < count; ++i) dst[to + i] = table[src[from + i]];
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(dst + 4 * (to + i), table + 4 * src[from + i], 4);
    }
  });
}

void clipq_step(const ClipqCopy &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  for_blocks(spec.rows, [&](int64_t from, int64_t to, int64_t count) {
    std::memcpy(dst + to, src + from, static_cast<size_t>(count));
  });
}

namespace {

// Pixels of one row; with `kChannels` known a copy is a move or two, without a call.
template <int64_t kChannels>
void pick(const ClipqUpsample &spec, const uint8_t *in, uint8_t *out) {
  const int64_t channels = kChannels ? kChannels : spec.channels;
  for (int64_t column = 0; column < spec.columns; ++column, out += spec.stride) {
    std::memcpy(out, in + spec.column_of[column] * channels, static_cast<size_t>(channels));
  }
}

}  // namespace

void clipq_step(const ClipqUpsample &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  const auto pick_row = spec.channels == 3 ? pick<3> : pick<0>;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < spec.images; ++image) {
    for (int64_t row = 0; row < spec.rows; ++row) {
      pick_row(spec,
               src + (image * spec.height + spec.row_of[row]) * spec.width * spec.channels,
               dst + (image * spec.rows + row) * spec.columns * spec.stride);
    }
  }
}

void clipq_step(const ClipqFlatten &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < spec.images; ++image) {
    for (int64_t c = 0; c < spec.channels; ++c) {
      const uint8_t *in = src + image * spec.pixels * spec.channels + c;
      uint8_t *out = dst + (image * spec.channels + c) * spec.pixels;
      for (int64_t i = 0; i < spec.pixels; ++i) out[i] = in[i * spec.channels];
    }
  }
}
