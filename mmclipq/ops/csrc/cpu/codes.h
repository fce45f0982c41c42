// How codes are read and written, for all operators.
#pragma once

#include <cstdint>

#include "curve.h"

// Which instructions the operators use, and the best of this processor. On x86-64: 2 for AVX-512, 1 for
// AVX2, 0 for what all have. On Arm: 1 for dot products, 0 for what all of 64 bits have.
int clipq_generation();
int clipq_best_generation();

// A code is (byte ^ flip) - subtrahend steps. A value in steps becomes a code once it is clipped to
// [low, high] and rounded, by adding the offset.
struct ClipqCodes {
  int32_t flip, subtrahend, offset;
  float low, high;

  ClipqCodes(int32_t is_signed, int32_t offset)
      : flip(is_signed ? 128 : 0),
        subtrahend(flip + offset),
        offset(offset),
        low(static_cast<float>((is_signed ? -128 : 0) - offset)),
        high(static_cast<float>((is_signed ? 127 : 255) - offset)) {}
};

// What follows the integer sums of a layer. v = sum * multiplier[c] + bias[c]; activation, before or
// after which the residual's codes are added; codes of v * scale, or v itself.
struct ClipqEpilogue {
  const float *multiplier, *bias;
  int32_t activation;
  float alpha;
  int32_t dst_float;
  float scale;
  ClipqCodes dst;
  int32_t residual_order;  // 0 none, 1 before the activation, 2 after it
  float residual_step;
  ClipqCodes residual;
  const ClipqCurve *curve;  // of the activation, or null
};

// The epilogue of sums (pixels, channels), whose first channel is `first` of the layer's; all strides
// in items, `residual` and `dst` at that channel. Float results may lie where the sums do.
void clipq_finish(const ClipqEpilogue &epilogue, const int32_t *sums, int64_t sum_stride,
                  const uint8_t *residual, int64_t residual_stride, void *dst, int64_t dst_stride,
                  int64_t pixels, int64_t first, int64_t channels);
