// Additions, changes of range and max-pooling of int8 and uint8 codes with channels last, as the
// reference backend computes them: each float32 operation rounded on its own, none contracted.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "api.h"

extern "C" {

enum ClipqActivation : int32_t { kIdentity = 0, kReLU = 1, kClip = 2 };

// v = a * a_step + b * b_step; activation; codes of v * scale. Without b, v = a * a_step.
struct ClipqAdd {
  int32_t a_signed, b_signed, dst_signed, activation;
  float a_step, b_step, scale;
  float alpha;  // slope of ReLU's negative side, or upper bound of the clip
};

struct ClipqMaxPool {
  int64_t images, height, width, channels, rows, columns;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
};

}  // extern "C"

namespace {

#define CLIPQ_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#define CLIPQ_INLINE inline __attribute__((always_inline))

constexpr int64_t kBlock = 1 << 14;

template <typename A, typename B, int kActivation>
CLIPQ_INLINE void add_block(const A *a, const B *b, uint8_t *dst, int64_t count,
                            const ClipqAdd &spec) {
  const float low = spec.dst_signed ? -128.0f : 0.0f, high = spec.dst_signed ? 127.0f : 255.0f;
  for (int64_t i = 0; i < count; ++i) {
    float v = static_cast<float>(a[i]) * spec.a_step;
    if (b != nullptr) v += static_cast<float>(b[i]) * spec.b_step;
    if (kActivation == kReLU) v = v > 0.0f ? v : v * spec.alpha;
    if (kActivation == kClip) v = std::min(std::max(v, 0.0f), spec.alpha);
    v = std::min(std::max(v * spec.scale, low), high);
    // Adding 1.5 * 2^23 leaves no room for a fraction, which rounds it half to even.
    dst[i] = static_cast<uint8_t>(static_cast<int32_t>((v + 12582912.0f) - 12582912.0f));
  }
}

template <typename A, typename B>
CLIPQ_INLINE void add_any(const void *a, const void *b, uint8_t *dst, int64_t first, int64_t count,
                          const ClipqAdd &spec) {
  const A *x = static_cast<const A *>(a) + first;
  const B *y = b == nullptr ? nullptr : static_cast<const B *>(b) + first;
  if (spec.activation == kReLU) {
    add_block<A, B, kReLU>(x, y, dst + first, count, spec);
  } else if (spec.activation == kClip) {
    add_block<A, B, kClip>(x, y, dst + first, count, spec);
  } else {
    add_block<A, B, kIdentity>(x, y, dst + first, count, spec);
  }
}

CLIPQ_VECTORIZED void add_range(const void *a, const void *b, uint8_t *dst, int64_t first,
                                int64_t count, const ClipqAdd &spec) {
  if (spec.a_signed && spec.b_signed) {
    add_any<int8_t, int8_t>(a, b, dst, first, count, spec);
  } else if (spec.a_signed) {
    add_any<int8_t, uint8_t>(a, b, dst, first, count, spec);
  } else if (spec.b_signed) {
    add_any<uint8_t, int8_t>(a, b, dst, first, count, spec);
  } else {
    add_any<uint8_t, uint8_t>(a, b, dst, first, count, spec);
  }
}

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

template <typename Code>
void max_pool(const ClipqMaxPool &s, const Code *src, Code *dst, Code smallest) {
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < s.images; ++image) {
    for (int64_t row = 0; row < s.rows; ++row) {
      Code *out = dst + (image * s.rows + row) * s.columns * s.channels;
      for (int64_t column = 0; column < s.columns; ++column, out += s.channels) {
        std::fill(out, out + s.channels, smallest);
        for (int64_t r = 0; r < s.kernel[0]; ++r) {
          const int64_t y = row * s.stride[0] - s.padding[0] + r * s.dilation[0];
          if (y < 0 || y >= s.height) continue;
          for (int64_t q = 0; q < s.kernel[1]; ++q) {
            const int64_t x = column * s.stride[1] - s.padding[1] + q * s.dilation[1];
            if (x < 0 || x >= s.width) continue;
            largest(src + ((image * s.height + y) * s.width + x) * s.channels, out, s.channels);
          }
        }
      }
    }
  }
}

}  // namespace

// OpenMP keeps this number for each calling thread; oneDNN and all operators here follow it.
CLIPQ_API void clipq_set_threads(int32_t count) { omp_set_num_threads(count); }

// `b` may be null. All tensors hold `count` codes in one order; the result may be one of them.
CLIPQ_API void clipq_add(const ClipqAdd *spec, const void *a, const void *b, void *dst,
                         int64_t count) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < count; first += kBlock) {
    add_range(a, b, static_cast<uint8_t *>(dst), first, std::min(kBlock, count - first), *spec);
  }
}

CLIPQ_API void clipq_max_pool(const ClipqMaxPool *spec, const void *src, void *dst,
                              int32_t is_signed) {
  if (is_signed) {
    max_pool(*spec, static_cast<const int8_t *>(src), static_cast<int8_t *>(dst), int8_t{-128});
  } else {
    max_pool(*spec, static_cast<const uint8_t *>(src), static_cast<uint8_t *>(dst), uint8_t{0});
  }
}
