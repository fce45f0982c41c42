// Convolutions and linear layers: what Python plans, what kernels get, and the epilogue they share.
#pragma once

#include "../common/steps.h"
#include "device.cuh"

enum ClipqResidual : int32_t { kNone = 0, kBeforeActivation = 1, kAfterActivation = 2 };

// A linear layer is a convolution of images of one pixel. Tensors lie with channels last, their
// pixels `..._stride` items apart. Weights are (groups = 1) int8 (outputs, kernel, channels), each
// output's filled up with zeros to `depth` bytes and the outputs to a multiple of 256, or (any other
// groups) int8 (kernel, channels / groups, outputs) without filling.
struct ClipqProductStep : ClipqMaps, ClipqWindow {  // channels as stored
  ClipqPlace src, dst, residual;
  ClipqPlace sums, counters;  // of split products, int32 zeros before and after
  const int8_t *weight;
  const float *multiplier, *bias;          // (outputs,), scaled to steps of the result's codes
  const int64_t *row_of, *column_of;       // source of each row and column of the residual, or null
  int64_t outputs, depth, groups;
  int64_t src_stride, dst_stride, residual_stride, residual_height, residual_width;
  int32_t src_signed, dst_kind, activation, residual_signed, residual_order;
  int32_t wide_dst, wide_residual;  // whether 16 channels may be stored and read at once
  int32_t tile, splits;
  float alpha;  // slope of ReLU's negative side, or upper bound of the clip
  float residual_scale;
};

struct ProductArgs {
  const uint8_t *src, *residual;
  void *dst;
  int *sums, *counters;
  const int8_t *weight;
  const float *multiplier, *bias;
  const int64_t *row_of, *column_of;
  int height, width, channels, rows, columns, pixels, outputs, depth, group_channels, group_outputs;
  int src_stride, dst_stride, residual_stride, residual_height, residual_width;
  int kernel_y, kernel_x, step_y, step_x, padding_y, padding_x, dilation_y, dilation_x;
  int src_signed, dst_kind, activation, residual_signed, residual_order;
  int wide_dst, wide_residual, splits;
  float alpha, residual_scale;
};

// v = float(acc) * m + b, the residual's value r, and the activation, each operation rounded.
CLIPQ_DEVICE float finish(const ProductArgs &p, int acc, float m, float b, float r) {
  float v = device::add(device::mul(device::from_int(acc), m), b);
  if (p.residual_order == kBeforeActivation) v = device::add(v, r);
  if (p.activation == kReLU) {
    const float negative = p.alpha == 0.0f ? 0.0f : device::mul(v, p.alpha);
    v = v > 0.0f ? v : negative;
  } else if (p.activation == kClip) {
    v = v > 0.0f ? v : 0.0f;
    v = v < p.alpha ? v : p.alpha;
  }
  if (p.residual_order == kAfterActivation) v = device::add(v, r);
  return v;
}

CLIPQ_DEVICE float residual_value(const ProductArgs &p, uint8_t code) {
  const int v = p.residual_signed ? static_cast<int8_t>(code) : code;
  return device::mul(device::from_int(v), p.residual_scale);
}

// Number of the residual's pixel that pixel `m` of the result adds: itself, or the nearest one of a
// smaller map.
CLIPQ_DEVICE int64_t residual_pixel(const ProductArgs &p, int m) {
  if (p.row_of == nullptr) return m;
  const int image = m / (p.rows * p.columns), rest = m - image * p.rows * p.columns;
  const int row = rest / p.columns, column = rest - row * p.columns;
  return (static_cast<int64_t>(image) * p.residual_height + p.row_of[row]) * p.residual_width +
         p.column_of[column];
}

void launch_conv_s8(const ProductArgs &args, int tile, ClipqStream stream);
void launch_conv_u8(const ProductArgs &args, int tile, ClipqStream stream);
// Pixels and outputs of a block's result, its bytes of shared memory, and whether it is for inputs of
// at most 4 channels; returns false if there is no such tile.
bool describe_tile(int tile, int32_t *properties);
void launch_grouped_conv(const ProductArgs &args, ClipqStream stream);
