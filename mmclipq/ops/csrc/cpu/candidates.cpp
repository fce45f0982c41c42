// The scores of a dense head that can belong to a box, with what PyTorch's own functions shall compute.

#include <exception>

#include "boxes.h"
#include "heads.h"

namespace {

constexpr int64_t kTooMany = -2;

// Everything of one image, in the order in which MMDetection flattens its maps.
class Collector {
 public:
  Collector(const ClipqHead &head, ClipqImage &image) : head_(head), image_(image) {}

  int64_t collect() {
    for (int64_t number = 0; number < head_.count; ++number) {
      level_ = head_.levels + number, maps_ = image_.maps + number;
      const int64_t before = count_;
      if (!collect_level()) return kTooMany;
      image_.counts[number] = count_ - before;
    }
    finish();
    return count_;
  }

 private:
  ClipqSelect selection() const {
    ClipqSelect s{};
    const bool merged = head_.kind != kYolov3 && !head_.softmax &&
                        head_.score_group == head_.classes;
    s.scores = maps_->scores + head_.first_class * level_->scores.channel;
    s.places = level_->places;
    s.place_stride = level_->scores.place, s.channel_stride = level_->scores.channel;
    s.groups = merged ? 1 : head_.groups;
    s.channels = merged ? head_.groups * head_.classes : head_.classes;
    s.group_stride = merged ? s.channels : head_.score_group;
    s.threshold = head_.least;
    s.background = head_.softmax;
    const bool cut = head_.kind == kThresholded || head_.kind == kProposals;
    s.most = cut && !head_.softmax && !image_.everything ? head_.most : 0;
    if (head_.kind == kYolov3 || head_.kind == kYolox) {
      s.gate = maps_->factors;
      s.gate_place_stride = level_->factors.place;
      s.gate_group_stride = head_.factor_group * level_->factors.channel;
      s.gate_threshold = head_.least_factor;
    }
    return s;
  }

  bool collect_level() {
    static thread_local std::vector<uint8_t> marks;
    const ClipqSelect s = selection();
    const float threshold = clipq_mark_places(s, marks);
    for (int64_t place = 0; place < level_->places; ++place) {
      if (!marks[place]) continue;
      for (int64_t group = 0; group < head_.groups; ++group) {
        const float factor = head_.has_factors ? *factor_of(place, group) : 0.0f;
        if (s.gate != nullptr && factor < s.gate_threshold) continue;
        if (!collect_group(place, group, factor, threshold)) return false;
      }
    }
    return true;
  }

  bool collect_group(int64_t place, int64_t group, float factor, float threshold) {
    const int64_t channel = group * head_.score_group + head_.first_class;
    const float *row = ClipqHeadMaps::at(maps_->scores, level_->scores, place, channel);
    const int64_t step = level_->scores.channel;
    if (head_.softmax) {
      const float base = row[head_.classes * step] + threshold;
      bool found = false;
      for (int64_t c = 0; c < head_.classes; ++c) found |= !(row[c * step] < base);
      return !found || push_row(place, group, row, step);
    }
    if (head_.kind == kYolox) {  // the best class alone, and what may equal it after rounding
      float best = threshold;
      for (int64_t c = 0; c < head_.classes; ++c) best = row[c * step] > best ? row[c * step] : best;
      const float lowered = clipq_lowered(best);
      threshold = lowered > threshold ? lowered : threshold;
    }
    for (int64_t c = 0; c < head_.classes; ++c) {
      const float logit = row[c * step];
      if (logit < threshold) continue;  // not a NaN
      if (count_ == image_.capacity) return false;
      const int64_t number = (place * head_.groups + group) * head_.classes + c;
      vector_ |= !level_->score_run.alone(number);
      image_.values[count_] = logit;
      if (!push(number, place, group, factor)) return false;
    }
    return true;
  }

  // A softmax needs all scores of an anchor, the background's behind them.
  bool push_row(int64_t place, int64_t group, const float *row, int64_t step) {
    const int64_t length = head_.classes + 1;
    if ((count_ + 1) * length > image_.capacity) return false;
    for (int64_t c = 0; c < length; ++c) image_.values[count_ * length + c] = row[c * step];
    return push(place * head_.groups + group, place, group, 0.0f);
  }

  bool push(int64_t number, int64_t place, int64_t group, float factor) {
    image_.index[count_] = number;
    if (head_.has_factors) {
      vector_ |= !level_->factor_run.alone(place * head_.groups + group);
      factors_.push_back(factor);
    }
    if (head_.coder != kDistance) {
      const int64_t first = group * head_.box_group;
      for (int64_t i = 0; i < 2; ++i) {
        float size = *ClipqHeadMaps::at(maps_->boxes, level_->boxes, place, first + 2 + i);
        if (head_.coder == kDelta) {
          size = size * head_.stds[2 + i] + head_.means[2 + i];
          if (size < -head_.largest_delta) size = -head_.largest_delta;
          if (size > head_.largest_delta) size = head_.largest_delta;
        }
        image_.exponents[2 * count_ + i] = size;
      }
    }
    ++count_;
    return true;
  }

  void finish() {
    image_.padded = 0;
    if (head_.softmax || !vector_) return;
    std::copy(factors_.begin(), factors_.end(), image_.values + count_);
    const int64_t used = count_ + static_cast<int64_t>(factors_.size());
    image_.padded = (used + 31) / 32 * 32;  // the array is so much longer than it must be
    std::fill(image_.values + used, image_.values + image_.padded, 0.0f);
  }

  const float *factor_of(int64_t place, int64_t group) const {
    return ClipqHeadMaps::at(maps_->factors, level_->factors, place, group * head_.factor_group);
  }

  const ClipqHead &head_;
  ClipqImage &image_;
  const ClipqHeadLevel *level_ = nullptr;
  const ClipqHeadMaps *maps_ = nullptr;
  int64_t count_ = 0;
  bool vector_ = false;
  std::vector<float> factors_;
};

}  // namespace

// Returns how many candidates there are (anchors with a softmax), -1 without memory, -2 if there are
// more than fit.
CLIPQ_API int64_t clipq_candidates(const ClipqHead *head, ClipqImage *image) {
  try {
    return Collector(*head, *image).collect();
  } catch (const std::exception &) {
    return -1;
  }
}
