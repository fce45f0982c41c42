// The steps of a program, the same for every device: what Python plans (mmclipq/ops/steps.py mirrors
// these structures) and a library executes one after another. Each device has its own product.
#pragma once

#include <cstdint>

#define CLIPQ_API extern "C" __attribute__((visibility("default")))

// A program runs with other buffers each time, so a step names its tensors by the number of the
// buffer and the bytes before them. A negative number is none.
struct ClipqPlace {
  int64_t buffer, offset;
};

class ClipqBuffers {
 public:
  explicit ClipqBuffers(void *const *buffers) : buffers_(buffers) {}

  template <typename T>
  T *at(const ClipqPlace &place) const {
    if (place.buffer < 0) return nullptr;
    return reinterpret_cast<T *>(static_cast<char *>(buffers_[place.buffer]) + place.offset);
  }

 private:
  void *const *buffers_;
};

// How a result lies: `rows` runs of `channels` items, the first items `stride` items apart, so that
// it may be a part of the channels of a larger tensor. Sources lie without gaps.
struct ClipqRows {
  int64_t rows, channels, stride;
};

// Images that are read and the rows and columns that are written of each.
struct ClipqMaps {
  int64_t images, height, width, channels, rows, columns;
};

// Windows over rows and columns, as convolutions and pooling have them.
struct ClipqWindow {
  int64_t kernel[2], step[2], padding[2], dilation[2];
};

enum ClipqType : int32_t { kInt8 = 0, kUint8 = 1, kFloat = 2 };
enum ClipqActivation : int32_t {
  kIdentity, kReLU, kClip, kSilu, kSigmoid, kTanh, kHardswish, kHardsigmoid, kGelu, kGeluTanh, kElu,
  kMish, kExp
};

// v = (a - a_offset) * a_step + (b - b_offset) * b_step; activation; codes of v * scale. Without b,
// v is the first term.
struct ClipqSum {
  ClipqPlace a, b, dst;
  ClipqRows rows;
  int32_t a_signed, b_signed, dst_signed, activation;
  int32_t a_offset, b_offset, dst_offset;
  float a_step, b_step, scale;
  float alpha;  // slope of ReLU's negative side, upper bound of the clip, or ELU's alpha
};

// Codes of float32 values, which lie as planes (images, channels, pixels) or with channels last.
struct ClipqQuantize {
  ClipqPlace src, dst;
  ClipqRows rows;
  int64_t pixels;  // of an image
  int32_t planes, dst_signed, dst_offset;
  float scale;
};

struct ClipqDequantize {
  ClipqPlace src, dst;
  int64_t count;
  int32_t src_signed, src_offset;
  float step;
};

struct ClipqCopy {
  ClipqPlace src, dst;
  ClipqRows rows;
};

struct ClipqMaxPool : ClipqMaps, ClipqWindow {
  ClipqPlace src, dst;
  int64_t stride;
  int32_t is_signed;
};

struct ClipqUpsample : ClipqMaps {
  ClipqPlace src, dst;
  int64_t stride;
  const int64_t *row_of, *column_of;  // source of each row and column, where the device reads
};

// (images, pixels, channels) to (images, channels, pixels).
struct ClipqFlatten {
  ClipqPlace src, dst;
  int64_t images, pixels, channels;
};

struct ClipqLevel {
  ClipqPlace codes;  // (N, H, W, C)
  int64_t height, width;
  float scale;
};

// Regions (count, 5); result (count, rows, columns, channels).
struct ClipqRoIAlign {
  ClipqPlace rois, dst;
  const ClipqLevel *level;
  int64_t count, levels, channels, rows, columns;
  int64_t sampling_ratio;
  int32_t aligned, src_signed, dst_signed, src_offset, dst_offset;
  float finest_scale;
  float scale;  // step of the input codes over that of the result's
};

// What each of the 256 codes becomes: `size` bytes of the table for each, codes or float32 values.
struct ClipqLookup {
  ClipqPlace src, dst;
  ClipqRows rows;
  const void *table;
  int64_t size;
};

// Sum or product of two tensors of codes whose axes broadcast: strides, in items, from one image,
// row and column to the next, and whether the channels differ.
struct ClipqPairwise {
  ClipqPlace a, b, dst;
  int64_t images, rows, columns, channels, stride;
  int64_t a_strides[4], b_strides[4];
  int32_t product;
  int32_t a_signed, b_signed, dst_signed, activation;
  int32_t a_offset, b_offset, dst_offset;
  float a_step, b_step, scale, alpha;
};

// v = float32(sum of a window of x - src_offset) * inverse[row, column]; codes of v * scale.
struct ClipqAvgPool : ClipqMaps, ClipqWindow {
  ClipqPlace src, dst;
  int64_t stride;
  const float *inverse;
  int32_t src_signed, dst_signed, src_offset, dst_offset;
  float scale;
};

enum ClipqStatistics : int32_t { kGiven = 0, kOfGroups = 1, kOfPixels = 2 };

// v = float32(x - src_offset) * m[c] + b[c]; activation; codes of v * scale, or v itself. m and b are
// `multiplier` and `bias`, or what normalization makes of them as weight and bias (ir.Normalize).
// Pixels lie one after the other, images of `pixels` each.
struct ClipqAffine {
  ClipqPlace src, dst;
  int64_t images, pixels, channels, stride, groups;
  const float *multiplier, *bias;
  double step, eps;
  int32_t statistics, activation;
  int32_t src_signed, dst_signed, src_offset, dst_offset, dst_float;
  float scale, alpha;
};

struct ClipqStep {
  int64_t kind;
  const void *step;
};

struct ClipqProductStep;

// Runs `step` by the overload of `run` for its structure.
template <typename Run>
void clipq_dispatch(const ClipqStep &step, Run run) {
  switch (step.kind) {
    case 0: return run(*static_cast<const ClipqProductStep *>(step.step));
    case 1: return run(*static_cast<const ClipqSum *>(step.step));
    case 2: return run(*static_cast<const ClipqQuantize *>(step.step));
    case 3: return run(*static_cast<const ClipqDequantize *>(step.step));
    case 4: return run(*static_cast<const ClipqCopy *>(step.step));
    case 5: return run(*static_cast<const ClipqMaxPool *>(step.step));
    case 6: return run(*static_cast<const ClipqUpsample *>(step.step));
    case 7: return run(*static_cast<const ClipqFlatten *>(step.step));
    case 8: return run(*static_cast<const ClipqRoIAlign *>(step.step));
    case 9: return run(*static_cast<const ClipqLookup *>(step.step));
    case 10: return run(*static_cast<const ClipqPairwise *>(step.step));
    case 11: return run(*static_cast<const ClipqAvgPool *>(step.step));
    case 12: return run(*static_cast<const ClipqAffine *>(step.step));
  }
}
