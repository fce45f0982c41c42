// Sums, conversions and copies of int8 and uint8 codes with channels last, as the reference backend
// computes them: each float32 operation rounded on its own, none contracted.

#include <algorithm>
#include <cstring>

#include "api.h"

namespace {

constexpr int64_t kBlock = 1 << 13;

// Adding 1.5 * 2^23 leaves no room for a fraction, which rounds it half to even.
CLIPQ_INLINE uint8_t to_code(float v, float low, float high) {
  v = std::min(std::max(v, low), high);
  return static_cast<uint8_t>(static_cast<int32_t>((v + 12582912.0f) - 12582912.0f));
}

CLIPQ_INLINE float lowest(int32_t is_signed) { return is_signed ? -128.0f : 0.0f; }
CLIPQ_INLINE float highest(int32_t is_signed) { return is_signed ? 127.0f : 255.0f; }

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

template <typename A, typename B, int kActivation>
CLIPQ_INLINE void sum_block(const A *a, const B *b, uint8_t *dst, int64_t count,
                            const ClipqSum &spec) {
  const float low = lowest(spec.dst_signed), high = highest(spec.dst_signed);
  for (int64_t i = 0; i < count; ++i) {
    float v = static_cast<float>(a[i]) * spec.a_step;
    if (b != nullptr) v += static_cast<float>(b[i]) * spec.b_step;
    if (kActivation == kReLU) v = v > 0.0f ? v : v * spec.alpha;
    if (kActivation == kClip) v = std::min(std::max(v, 0.0f), spec.alpha);
    dst[i] = to_code(v * spec.scale, low, high);
  }
}

template <typename A, typename B>
CLIPQ_INLINE void sum_any(const void *a, const void *b, uint8_t *dst, int64_t count,
                          const ClipqSum &spec) {
  const A *x = static_cast<const A *>(a);
  const B *y = static_cast<const B *>(b);
  if (spec.activation == kReLU) {
    sum_block<A, B, kReLU>(x, y, dst, count, spec);
  } else if (spec.activation == kClip) {
    sum_block<A, B, kClip>(x, y, dst, count, spec);
  } else {
    sum_block<A, B, kIdentity>(x, y, dst, count, spec);
  }
}

CLIPQ_VECTORIZED void sum(const void *a, const void *b, uint8_t *dst, int64_t count,
                          const ClipqSum &spec) {
  if (spec.a_signed && spec.b_signed) {
    sum_any<int8_t, int8_t>(a, b, dst, count, spec);
  } else if (spec.a_signed) {
    sum_any<int8_t, uint8_t>(a, b, dst, count, spec);
  } else if (spec.b_signed) {
    sum_any<uint8_t, int8_t>(a, b, dst, count, spec);
  } else {
    sum_any<uint8_t, uint8_t>(a, b, dst, count, spec);
  }
}

CLIPQ_VECTORIZED void quantize(const float *src, uint8_t *dst, int64_t count, float scale,
                               float low, float high) {
  for (int64_t i = 0; i < count; ++i) dst[i] = to_code(src[i] * scale, low, high);
}

CLIPQ_VECTORIZED void dequantize(const void *src, float *dst, int64_t count,
                                 const ClipqDequantize &spec) {
  if (spec.src_signed) {
    const int8_t *codes = static_cast<const int8_t *>(src);
    for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<float>(codes[i]) * spec.step;
  } else {
    const uint8_t *codes = static_cast<const uint8_t *>(src);
    for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<float>(codes[i]) * spec.step;
  }
}

// Each plane becomes codes by itself, then its codes go to their places among the channels.
void quantize_planes(const ClipqQuantize &spec, const float *src, uint8_t *dst) {
  const float low = lowest(spec.dst_signed), high = highest(spec.dst_signed);
  const int64_t channels = spec.rows.channels, stride = spec.rows.stride;
  const int64_t images = spec.rows.rows / std::max<int64_t>(spec.pixels, 1);
  constexpr int64_t kPixels = 1024;
  const int64_t pieces = (spec.pixels + kPixels - 1) / kPixels;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * kPixels, count = std::min(kPixels, spec.pixels - first);
      uint8_t codes[kPixels];
      for (int64_t c = 0; c < channels; ++c) {
        quantize(src + (image * channels + c) * spec.pixels + first, codes, count, spec.scale, low,
                 high);
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
    sum(a + from, b == nullptr ? nullptr : b + from, dst + to, count, spec);
  });
}

void clipq_step(const ClipqQuantize &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const float>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  if (spec.planes) return quantize_planes(spec, src, dst);
  const float low = lowest(spec.dst_signed), high = highest(spec.dst_signed);
  for_blocks(spec.rows, [&](int64_t from, int64_t to, int64_t count) {
    quantize(src + from, dst + to, count, spec.scale, low, high);
  });
}

void clipq_step(const ClipqDequantize &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<float>(spec.dst);
  for_blocks({1, spec.count, spec.count}, [&](int64_t from, int64_t, int64_t count) {
    dequantize(src + from, dst + from, count, spec);
  });
}

void clipq_step(const ClipqCopy &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  for_blocks(spec.rows, [&](int64_t from, int64_t to, int64_t count) {
    std::memcpy(dst + to, src + from, static_cast<size_t>(count));
  });
}

void clipq_step(const ClipqUpsample &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < spec.images; ++image) {
    for (int64_t row = 0; row < spec.rows; ++row) {
      const uint8_t *in = src + (image * spec.height + spec.row_of[row]) * spec.width *
                                    spec.channels;
      uint8_t *out = dst + (image * spec.rows + row) * spec.columns * spec.stride;
      for (int64_t column = 0; column < spec.columns; ++column, out += spec.stride) {
        std::memcpy(out, in + spec.column_of[column] * spec.channels,
                    static_cast<size_t>(spec.channels));
      }
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
