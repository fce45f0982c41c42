// How the direct layers share out a result, see direct.cpp.
#pragma once

#include "direct.h"

namespace clipq {

constexpr int64_t kStrip = 48;  // pixels, a multiple of those of all kernels' tiles

// Where the parts of a layer's result lie and what they read, at one shape.
struct Geometry {
  int64_t images, height, width, rows, columns;  // of the source and of the result
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t take[2];            // every which source row and column is read at all
  int64_t tile[2];            // rows and columns of a task's rectangle
  int64_t chunk, chunks;      // a task's blocks of channels, and how many such parts there are
  int64_t channels, stored;   // of the source, and of them those that a task stores
  bool in_place;              // whether kernels read the source itself

  // Source rows or columns that so many of the result read.
  int64_t reach(int axis, int64_t count) const {
    return (count - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1;
  }
};

// For as many threads as OpenMP may use now; `blocks` of channels of the result.
Geometry plan_direct(const ClipqProduct &spec, const Kernels &kernels, int64_t blocks,
                     const Shape &src, const Shape &dst, const Shape &before);

}  // namespace clipq
