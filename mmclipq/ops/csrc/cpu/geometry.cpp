// Rectangles of the result whose numbers fit into the second-level cache, and enough of them.

#include "geometry.h"

#include <omp.h>

#include <algorithm>

namespace clipq {
namespace {

constexpr int64_t kNumberBytes = 192 << 10;  // of the numbers of a task

}  // namespace

Geometry plan_direct(const ClipqProduct &s, const Kernels &kernels, int64_t blocks,
                     const Shape &src, const Shape &dst, const Shape &before) {
  Geometry g{};
  g.channels = s.channels;
  for (int axis = 0; axis < 2; ++axis) {
    g.kernel[axis] = s.kernel[axis];
    g.stride[axis] = s.step[axis];
    g.padding[axis] = before[static_cast<size_t>(axis)];
    g.dilation[axis] = s.dilation[axis];
    g.take[axis] = 1;
  }
  const bool alone = g.kernel[0] == 1 && g.kernel[1] == 1 && !g.padding[0] && !g.padding[1];
  if (s.linear || (alone && g.stride[0] == 1 && g.stride[1] == 1)) {
    g.images = g.height = g.rows = 1;
    g.width = s.linear ? src[0] : src[0] * src[2] * src[3];
    g.columns = g.width;
  } else {
    g.images = src[0];
    g.height = src[2], g.width = src[3], g.rows = dst[2], g.columns = dst[3];
    for (int axis = 0; alone && axis < 2; ++axis) {
      g.take[axis] = g.stride[axis];
      g.stride[axis] = 1;
    }
  }
  const bool depthwise = is_depthwise(s);
  const int64_t threads = omp_get_max_threads();
  // Depthwise, the numbers of one part of the channels suffice.
  g.chunk = depthwise ? std::min<int64_t>(blocks, 4) : blocks;
  g.stored = depthwise && blocks > g.chunk ? g.chunk * kBlock : g.channels;
  g.in_place = kernels.item == 1 && alone && g.take[0] == 1 && g.take[1] == 1 &&
               g.channels % kernels.together == 0 &&
               ((s.src_type == kInt8) == (kernels.sign != 0) ||
                (kernels.sum_signed != nullptr && pixels_together(s, kernels) == 1));
  const int64_t most = kNumberBytes / kernels.item / (depthwise ? 2 : 1) / g.stored;
  g.tile[1] = g.columns;
  while (g.tile[1] > 2 * kernels.pixels &&
         g.reach(0, std::min<int64_t>(g.rows, 4)) * g.reach(1, g.tile[1]) > most) {
    const int64_t parts = divided_up(g.columns, g.tile[1]) + 1;
    g.tile[1] = divided_up(divided_up(g.columns, parts), kernels.pixels) * kernels.pixels;
  }
  g.tile[0] = 1;
  while (g.tile[0] < g.rows && g.reach(0, g.tile[0] + 1) * g.reach(1, g.tile[1]) <= most) {
    ++g.tile[0];
  }
  const auto parts = [&] {
    return g.images * divided_up(g.rows, g.tile[0]) * divided_up(g.columns, g.tile[1]);
  };
  // Enough tasks that no thread waits long for another: smaller rectangles, then fewer channels.
  const int64_t wanted = threads == 1 ? 1 : 4 * threads;
  while (parts() < wanted && g.tile[0] > 8) g.tile[0] = divided_up(g.tile[0], 2);
  while (parts() < wanted && g.rows == 1 && g.tile[1] > kStrip) {
    g.tile[1] = divided_up(divided_up(g.tile[1], 2), kernels.pixels) * kernels.pixels;
  }
  g.tile[0] = divided_up(g.rows, divided_up(g.rows, g.tile[0]));  // alike
  if (!depthwise && parts() < wanted) {
    g.chunk = divided_up(blocks, std::min(blocks, divided_up(wanted, parts())));
  }
  g.chunks = divided_up(blocks, g.chunk);
  return g;
}

}  // namespace clipq
