// The activations of mmclipq/ops/activations.py, one value at a time.
#pragma once

#include "../common/steps.h"
#include "device.cuh"

struct ClipqOps {
  using Value = float;
  static CLIPQ_DEVICE float all(float v) { return v; }
  static CLIPQ_DEVICE float mul(float a, float b) { return device::mul(a, b); }
  static CLIPQ_DEVICE float add(float a, float b) { return device::add(a, b); }
  static CLIPQ_DEVICE float sub(float a, float b) { return device::sub(a, b); }
  static CLIPQ_DEVICE float div(float a, float b) { return device::div(a, b); }
  static CLIPQ_DEVICE float smaller(float a, float b) { return a < b ? a : b; }
  static CLIPQ_DEVICE float larger(float a, float b) { return a > b ? a : b; }
  static CLIPQ_DEVICE float below_zero(float v, float a, float b) { return v < 0.0f ? a : b; }
  static CLIPQ_DEVICE float less_exact(float a, float b, float c) { return sub(a, mul(b, c)); }
  static CLIPQ_DEVICE float scaled_by_power(float p, float t) {
    return device::mul(p, device::as_float((device::bits_of(t) + 127u) << 23));
  }
};

#define CLIPQ_EVERYWHERE CLIPQ_DEVICE
#include "../common/activations.h"

// Whether an activation is more than a comparison and a product.
CLIPQ_HOST_DEVICE bool is_smooth(int32_t activation) { return activation > kClip; }

// Of identity, ReLU and clip alone.
CLIPQ_DEVICE float clip_value(int32_t activation, float v, float alpha) {
  if (activation == kReLU) {
    const float negative = alpha == 0.0f ? 0.0f : device::mul(v, alpha);
    return v > 0.0f ? v : negative;
  }
  if (activation == kClip) {
    v = v > 0.0f ? v : 0.0f;
    return v < alpha ? v : alpha;
  }
  return v;
}

// Any activation. Its code is long.
CLIPQ_DEVICE float activate(int32_t activation, float v, float alpha) {
  using Of = ClipqActivations<ClipqOps>;
  switch (activation) {
    case kSilu: return Of::activate<kSilu>(v, alpha);
    case kSigmoid: return Of::activate<kSigmoid>(v, alpha);
    case kTanh: return Of::activate<kTanh>(v, alpha);
    case kHardswish: return Of::activate<kHardswish>(v, alpha);
    case kHardsigmoid: return Of::activate<kHardsigmoid>(v, alpha);
    case kGelu: return Of::activate<kGelu>(v, alpha);
    case kGeluTanh: return Of::activate<kGeluTanh>(v, alpha);
    case kElu: return Of::activate<kElu>(v, alpha);
    case kMish: return Of::activate<kMish>(v, alpha);
    case kExp: return Of::activate<kExp>(v, alpha);
    default: return clip_value(activation, v, alpha);
  }
}

// Activates kCount values that lie kStride apart.
template <int kCount, int kStride>
CLIPQ_CALLED void activate_slots(int32_t activation, float alpha, float *slots) {
  CLIPQ_ROLLED
  for (int k = 0; k < kCount; ++k) {
    slots[k * kStride] = activate(activation, slots[k * kStride], alpha);
  }
}
