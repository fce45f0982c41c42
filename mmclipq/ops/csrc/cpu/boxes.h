// What the sources about places and boxes share.
#pragma once

#include <vector>

#include "api.h"

// One map of one image. A place has `groups` groups (anchors) of `channels` scores; strides in items.
struct ClipqSelect {
  const float *scores;
  int64_t places, place_stride, channel_stride;
  int64_t groups, group_stride, channels;
  float threshold;
  int32_t background;  // whether the channel behind a group's last is the background's logit
  int64_t most;        // scores that count: as many as this, the largest, and their equals; 0 for all
  const float *gate;   // one more logit for each group, or null
  int64_t gate_place_stride, gate_group_stride;
  float gate_threshold;
};

// Marks the places that clipq_select gives, without those that keep PyTorch's groups; returns the
// threshold that counted.
float clipq_mark_places(const ClipqSelect &, std::vector<uint8_t> &marks);

// The least logit whose sigmoid in float32 may equal that of `logit`.
float clipq_lowered(float logit);

// The work of clipq_nms.
int64_t clipq_suppress(const float *boxes, const int64_t *order, int64_t count, float threshold,
                       float offset, int64_t most, int64_t *kept);
