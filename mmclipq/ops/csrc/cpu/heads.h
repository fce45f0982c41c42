// A dense head of MMDetection for the two steps from its maps to boxes, of one image.
#pragma once

#include <cmath>

#include "api.h"

enum ClipqKind { kThresholded, kProposals, kYolov3, kYolox };
enum ClipqCoder { kDelta, kDistance, kCellDelta, kCentre };

// A tensor whose sigmoid PyTorch takes: rows of `row` items, shared out between threads by `share`. Its
// vector loop takes `lanes` items at a time; what is left over at the end of a row or a share goes
// through the C library, which rounds otherwise.
struct ClipqRun {
  int64_t first;  // item of the tensor that is a level's first
  int64_t total, row, share, lanes;

  bool alone(int64_t number) const {
    const int64_t item = first + number;
    const int64_t row_start = item - item % row, share_start = item - item % share;
    const int64_t start = row_start > share_start ? row_start : share_start;
    int64_t end = row_start + row < share_start + share ? row_start + row : share_start + share;
    if (end > total) end = total;
    const int64_t length = end - start;
    return item - start >= length - length % lanes;
  }
};

// Distances in items from one place, and from one channel, to the next.
struct ClipqStrides {
  int64_t place, channel;
};

struct ClipqHeadLevel {
  int64_t places;
  ClipqStrides scores, boxes, factors;
  ClipqRun score_run, factor_run;
  float stride;
};

struct ClipqHead {
  const ClipqHeadLevel *levels;
  int64_t count;
  int32_t kind, coder, softmax, has_factors;
  // Channels of the scores and of boxes and factors from one anchor to the next.
  int64_t groups, score_group, first_class, classes, box_group, factor_group;
  float least, least_factor;  // logits below which nothing counts
  float score_threshold, factor_threshold;
  int64_t most;  // `nms_pre`
  float means[4], stds[4], largest_delta;
  int32_t clips;
  float smallest;  // `min_bbox_size`; negative for none
  int32_t agnostic;
  float overlap;
  int64_t kept;  // boxes after suppression
};

// One level's maps of one image, and its priors.
struct ClipqHeadMaps {
  const float *scores, *boxes, *factors, *priors;

  static const float *at(const float *map, const ClipqStrides &strides, int64_t place,
                         int64_t channel) {
    return map + place * strides.place + channel * strides.channel;
  }
};

// What one image adds, and memory for `capacity` candidates.
struct ClipqImage {
  const ClipqHeadMaps *maps;
  float height, width, scale_x, scale_y;
  int32_t scaling;  // boxes stay, are multiplied, or divided
  int32_t everything;  // all scores above the threshold, also where the largest would do
  int64_t capacity;
  int64_t *index;    // a candidate's number among its level's scores, or anchors with a softmax
  float *values;     // logits, then their sigmoids or softmax; behind them those of factors
  float *exponents;  // two for each candidate, then their exponential
  int64_t *counts;   // candidates of each level
  int64_t padded;    // values that a sigmoid is wanted of; 0 if the C library takes all
  // Scores to be sorted by the caller because some are equal, and the orders that it gives back.
  float *sorting;
  int64_t *orders, *order;
  int32_t has_orders, has_order;
  int64_t sizes_total;
  float *out_boxes, *out_scores;
  int64_t *out_labels;
};

inline float clipq_sigmoid(float logit) { return 1.0f / (1.0f + std::exp(-logit)); }
