// Convolutions and linear layers: what Python plans, what kernels get, and the epilogue they share.
#pragma once

#include "../common/steps.h"
#include "activations.cuh"
#include "device.cuh"

enum ClipqResidual : int32_t { kNone = 0, kBeforeActivation = 1, kAfterActivation = 2 };

// A linear layer is a convolution of images of one pixel. Tensors lie with channels last, their
// pixels `..._stride` items apart. Weights are (groups = 1) int8 (outputs, kernel, channels), each
// output's filled up with zeros to `depth` bytes and the outputs to a multiple of 256, or (any other
// groups) int8 (kernel, channels / groups, outputs) without filling.
//
// Where an input code z stands for zero, products multiply the codes as they are and take z for what
// lies outside of the image; `correction` is then -z times the sum of each output's weights.
struct ClipqProductStep : ClipqMaps, ClipqWindow {  // channels as stored
  ClipqPlace src, dst, residual;
  ClipqPlace sums, counters;  // of split products, int32 zeros before and after
  const int8_t *weight;
  const float *multiplier, *bias;          // (outputs,), scaled to steps of the result's codes
  const int64_t *row_of, *column_of;       // source of each row and column of the residual, or null
  const uint8_t *outside;                  // 16 codes z, or null without an offset or with groups
  const int32_t *correction;               // (outputs,), or null with `outside`
  int64_t outputs, depth, groups;
  int64_t src_stride, dst_stride, residual_stride, residual_height, residual_width;
  int32_t src_signed, dst_kind, activation, residual_signed, residual_order;
  int32_t wide_dst, wide_residual;  // whether 16 channels may be stored and read at once
  int32_t tile, splits;
  int32_t src_offset, residual_offset, dst_offset;
  float alpha;  // slope of ReLU's negative side, upper bound of the clip, or ELU's alpha
  float residual_scale, scale;  // the result is codes of v * scale; 1 unless the activation is smooth
};

struct ProductArgs {
  const uint8_t *src, *residual;
  void *dst;
  int *sums, *counters;
  const int8_t *weight;
  const float *multiplier, *bias;
  const int64_t *row_of, *column_of;
  const uint8_t *outside;
  const int32_t *correction;
  int height, width, channels, rows, columns, pixels, outputs, depth, group_channels, group_outputs;
  int src_stride, dst_stride, residual_stride, residual_height, residual_width;
  int kernel_y, kernel_x, step_y, step_x, padding_y, padding_x, dilation_y, dilation_x;
  int src_signed, dst_kind, activation, residual_signed, residual_order;
  int wide_dst, wide_residual, splits;
  int src_offset, residual_offset, dst_offset;
  float alpha, residual_scale, scale;
};

// v = float(acc) * m + b, the residual's value r, and the activation, each operation rounded; in two
// parts, because smooth activations between them are long.
CLIPQ_DEVICE float begin(const ProductArgs &p, int acc, float m, float b, float r) {
  const float v = device::add(device::mul(device::from_int(acc), m), b);
  return p.residual_order == kBeforeActivation ? device::add(v, r) : v;
}

// `v` has been activated if the activation is smooth.
CLIPQ_DEVICE float finish(const ProductArgs &p, float v, float r) {
  v = clip_value(p.activation, v, p.alpha);
  if (p.residual_order == kAfterActivation) v = device::add(v, r);
  return device::mul(v, p.scale);
}

CLIPQ_DEVICE float residual_value(const ProductArgs &p, uint8_t code) {
  const int v = (p.residual_signed ? static_cast<int8_t>(code) : code) - p.residual_offset;
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
