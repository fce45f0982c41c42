// Convolutions and linear layers of integers with their epilogue: what oneDNN and the direct kernels,
// which stand in for it, have in common.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "api.h"
#include "codes.h"

// Geometry and epilogue of one layer; a linear layer has one row and column everywhere.
struct ClipqProduct : ClipqWindow {
  int64_t channels, outputs, groups;
  int32_t linear;
  int32_t src_type, dst_type, src_offset, dst_offset;
  int32_t activation;
  float alpha;             // as in ClipqActivations
  float scale;             // from values after the activation to steps
  int32_t residual_order;  // 0 none, 1 before the activation, 2 after it
  int32_t residual_type, residual_offset;
  float residual_scale;
};

// One layer at one shape. `residual` has no place where the result's memory holds it.
struct ClipqProductStep {
  const void *compiled;
  ClipqPlace src, dst, scratchpad, residual;
  int64_t dst_stride;
};

namespace clipq {

using Shape = std::vector<int64_t>;

inline bool is_depthwise(const ClipqProduct &spec) {
  return spec.groups > 1 && spec.groups == spec.channels && spec.groups == spec.outputs;
}

// A layer at one shape, which runs on several threads at once and outlives the layer.
struct Compiled {
  int64_t scratchpad = 0;  // bytes of memory that a run needs for itself
  bool holds_residual = false;  // whether the result's memory must hold the residual before

  virtual ~Compiled() = default;
  virtual void run(const void *src, void *dst, int64_t dst_stride, const uint8_t *residual,
                   void *scratch) const = 0;
};

// Multipliers and biases, which reach beyond the layer's last channel, and the rest of its epilogue.
struct Epilogue {
  std::vector<float> multiplier, bias;
  ClipqEpilogue spec;
  ClipqCurve curve;

  Epilogue(const ClipqProduct &product, const float *multipliers, const float *biases)
      : multiplier(padded(multipliers, product.outputs)),
        bias(padded(biases, product.outputs)),
        spec{multiplier.data(),
             bias.data(),
             product.activation,
             product.alpha,
             product.dst_type == kFloat,
             product.scale,
             ClipqCodes(product.dst_type == kInt8, product.dst_offset),
             product.residual_order,
             product.residual_scale,
             ClipqCodes(product.residual_type == kInt8, product.residual_offset),
             nullptr} {
    if (clipq_fit_curve(spec, &curve)) spec.curve = &curve;
  }
  Epilogue(const Epilogue &) = delete;

 private:
  static std::vector<float> padded(const float *values, int64_t count) {
    std::vector<float> result(values, values + count);
    result.resize(static_cast<size_t>(count) + 64);
    return result;
  }
};

struct Layer {
  virtual ~Layer() = default;
  // Shapes are (N, C, H, W), or (N, C) of a linear layer; the tensors lie with channels last. `before`:
  // rows and columns of padding, whatever the layer's own say. `freed`: with an implementation whose
  // memory is freed with the result.
  virtual std::unique_ptr<Compiled> compile(const Shape &src, const Shape &dst,
                                            const Shape &before, bool freed) = 0;
};

// Their weights must stay where they are.
std::unique_ptr<Layer> direct_layer(const ClipqProduct &spec, const int8_t *weights,
                                    const float *multiplier, const float *bias);
bool has_direct_layers();
// Whether the direct layers are faster than oneDNN.
bool is_faster_direct(const ClipqProduct &spec);

// Convolutions that need a quarter of the products, see winograd.cpp, whether a layer is one, and
// whether it is faster for a result of this shape than oneDNN or the direct layers.
std::unique_ptr<Layer> winograd_layer(const ClipqProduct &spec, const int8_t *weights,
                                      const float *multiplier, const float *bias);
bool winograd_fits(const ClipqProduct &spec, const int8_t *weights);
bool is_faster_by_winograd(const ClipqProduct &spec, const Shape &dst, bool than_onednn);

std::unique_ptr<Layer> onednn_layer(const ClipqProduct &spec, const int8_t *weights,
                                    const float *multiplier, const float *bias);
bool has_onednn_layers();
bool is_onednn_forced();

}  // namespace clipq
