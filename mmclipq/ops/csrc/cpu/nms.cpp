// Greedy non-maximum suppression of boxes that are sorted by their scores.

#include <algorithm>
#include <exception>
#include <vector>

#include "boxes.h"

namespace {

struct Box {
  float left, top, right, bottom, area;
};

// Strikes out the boxes from `first` on that overlap `box` by more than `threshold`. What is compared
// is rounded in the order of mmcv's own loop: one division, no product in its place.
CLIPQ_VECTORIZED void strike(const Box &box, const float *left, const float *top,
                             const float *right, const float *bottom, const float *area,
                             float offset, float threshold, int64_t first, int64_t count,
                             uint8_t *alive) {
  for (int64_t i = first; i < count; ++i) {
    const float x1 = std::max(box.left, left[i]), y1 = std::max(box.top, top[i]);
    const float x2 = std::min(box.right, right[i]), y2 = std::min(box.bottom, bottom[i]);
    const float width = std::max(0.0f, x2 - x1 + offset);
    const float height = std::max(0.0f, y2 - y1 + offset);
    const float both = width * height;
    const float share = both / (box.area + area[i] - both);
    alive[i] &= !(share > threshold);
  }
}

}  // namespace

int64_t clipq_suppress(const float *boxes, const int64_t *order, int64_t count, float threshold,
                       float offset, int64_t most, int64_t *kept) {
  std::vector<float> sides(static_cast<size_t>(5 * count));
  std::vector<uint8_t> alive(static_cast<size_t>(count), 1);
  float *left = sides.data(), *top = left + count, *right = top + count;
  float *bottom = right + count, *area = bottom + count;
  for (int64_t i = 0; i < count; ++i) {
    const float *box = boxes + 4 * order[i];
    left[i] = box[0], top[i] = box[1], right[i] = box[2], bottom[i] = box[3];
    area[i] = (box[2] - box[0] + offset) * (box[3] - box[1] + offset);
  }
  int64_t found = 0;
  for (int64_t i = 0; i < count && found < most; ++i) {
    if (!alive[i]) continue;
    kept[found++] = order[i];
    const Box box{left[i], top[i], right[i], bottom[i], area[i]};
    strike(box, left, top, right, bottom, area, offset, threshold, i + 1, count, alive.data());
  }
  return found;
}

// `boxes` (n, 4), corners; `order` their numbers, the largest score first. Writes the numbers of those
// that stay, at most `most`, and returns how many, or -1 without memory.
CLIPQ_API int64_t clipq_nms(const float *boxes, const int64_t *order, int64_t count,
                            float threshold, float offset, int64_t most, int64_t *kept) {
  try {
    return clipq_suppress(boxes, order, count, threshold, offset, most, kept);
  } catch (const std::exception &) {
    return -1;
  }
}
