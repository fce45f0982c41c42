// Which places of a dense head's maps can hold a box, found on the logits alone.

#include <algorithm>
#include <cmath>
#include <exception>
#include <vector>

#include "boxes.h"

namespace {

// A NaN is no less than anything, so that it is kept.
CLIPQ_INLINE bool reaches(float score, float threshold) { return !(score < threshold); }

CLIPQ_VECTORIZED void mark_each(const float *scores, int64_t count, float threshold,
                                uint8_t *marks) {
  for (int64_t i = 0; i < count; ++i) marks[i] = reaches(scores[i], threshold);
}

CLIPQ_VECTORIZED void mark_more(const float *scores, int64_t count, float threshold,
                                uint8_t *marks) {
  for (int64_t i = 0; i < count; ++i) marks[i] |= reaches(scores[i], threshold);
}

CLIPQ_VECTORIZED bool any_reaches(const float *scores, int64_t count, float threshold) {
  int32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= reaches(scores[i], threshold);
  return found != 0;
}

CLIPQ_VECTORIZED int64_t count_reaching(const float *scores, int64_t count, float threshold) {
  int32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found += reaches(scores[i], threshold);
  return found;
}

// All scores as rows of consecutive ones: each (place, group), or each (group, channel).
template <typename Row>
void for_each_row(const ClipqSelect &s, const Row &row) {
  if (s.channel_stride == 1) {
    for (int64_t place = 0; place < s.places; ++place) {
      for (int64_t group = 0; group < s.groups; ++group) {
        row(s.scores + place * s.place_stride + group * s.group_stride, s.channels);
      }
    }
  } else {
    for (int64_t group = 0; group < s.groups; ++group) {
      for (int64_t c = 0; c < s.channels; ++c) {
        row(s.scores + (group * s.group_stride + c) * s.channel_stride, s.places);
      }
    }
  }
}

bool is_dense(const ClipqSelect &s) {
  const bool by_place = s.channel_stride == 1 && s.place_stride == s.groups * s.channels;
  const bool by_channel = s.place_stride == 1 && s.channel_stride == s.places;
  return (s.groups == 1 || s.group_stride == s.channels) && (by_place || by_channel);
}

int64_t count_all(const ClipqSelect &s, float threshold) {
  const int64_t all = s.places * s.groups * s.channels;
  if (is_dense(s)) return count_reaching(s.scores, all, threshold);
  int64_t found = 0;
  for_each_row(s, [&](const float *row, int64_t count) {
    found += count_reaching(row, count, threshold);
  });
  return found;
}

void collect(const ClipqSelect &s, float threshold, std::vector<float> &found) {
  const auto from_row = [&](const float *row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (row[i] >= threshold) found.push_back(row[i]);
    }
  };
  if (is_dense(s)) {
    from_row(s.scores, s.places * s.groups * s.channels);
  } else {
    for_each_row(s, from_row);
  }
}

// The threshold that leaves the `most` largest scores and their equals.
float raised(const ClipqSelect &s) {
  const int64_t all = s.places * s.groups * s.channels;
  if (s.most <= 0 || s.most >= all || count_all(s, s.threshold) <= s.most) return s.threshold;
  // A guess from every so many scores saves to sort out all; it must leave enough.
  float guess = s.threshold;
  const int64_t step = all / 2048;
  if (is_dense(s) && step > 1) {
    std::vector<float> sample;
    for (int64_t i = 0; i < all; i += step) {
      if (s.scores[i] >= s.threshold) sample.push_back(s.scores[i]);
    }
    const int64_t rank = s.most / step + s.most / step / 2 + 32;
    if (rank < static_cast<int64_t>(sample.size())) {
      std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
      if (count_all(s, sample[rank]) >= s.most) guess = sample[rank];
    }
  }
  std::vector<float> found;
  collect(s, guess, found);
  if (static_cast<int64_t>(found.size()) <= s.most) return s.threshold;  // NaN counted, too
  std::nth_element(found.begin(), found.begin() + s.most - 1, found.end(), std::greater<>());
  return std::max(s.threshold, clipq_lowered(found[s.most - 1]));
}

bool open(const ClipqSelect &s, int64_t place, int64_t group) {
  if (s.gate == nullptr) return true;
  return reaches(s.gate[place * s.gate_place_stride + group * s.gate_group_stride],
                 s.gate_threshold);
}

// PyTorch computes elementwise functions for groups of 32 and for what is left over at the end in two
// ways, which can round differently. So the places at the end are always taken, and some that cannot
// hold a box, until as many are left over as were.
void align(std::vector<uint8_t> &marks) {
  constexpr int64_t kGroup = 32;
  const int64_t places = static_cast<int64_t>(marks.size());
  const int64_t tail = std::min(places, places % kGroup + kGroup);
  std::fill(marks.end() - tail, marks.end(), uint8_t{1});
  int64_t count = std::count(marks.begin(), marks.end(), uint8_t{1});
  for (int64_t place = 0; place < places && (places - count) % kGroup != 0; ++place) {
    count += !marks[place];
    marks[place] = 1;
  }
}

}  // namespace

// A score's place among all is known after rounding alone: two logits may share one score in float32,
// and a sigmoid's last bits are not everywhere the same. So much less still counts as equal.
float clipq_lowered(float logit) {
  constexpr double kSlack = 1e-6;
  const double score = 1.0 / (1.0 + std::exp(-static_cast<double>(logit))) * (1.0 - kSlack);
  const double lower = std::log(score / (1.0 - score));
  return std::min(logit, std::nextafter(static_cast<float>(lower), -INFINITY));
}

float clipq_mark_places(const ClipqSelect &s, std::vector<uint8_t> &marks) {
  const float threshold = raised(s);
  const bool plain = s.gate == nullptr && !s.background;
  marks.assign(static_cast<size_t>(s.places), 0);
  if (plain && s.channel_stride == 1 && is_dense(s) && s.groups * s.channels < 16) {
    const int64_t row = s.groups * s.channels;
    std::vector<uint8_t> each(static_cast<size_t>(s.places * row));
    mark_each(s.scores, s.places * row, threshold, each.data());
    for (int64_t place = 0; place < s.places; ++place) {
      for (int64_t c = 0; c < row; ++c) marks[place] |= each[place * row + c];
    }
  } else if (plain && s.place_stride == 1 && s.channel_stride != 1) {  // rows are planes
    for_each_row(s, [&](const float *row, int64_t count) {
      mark_more(row, count, threshold, marks.data());
    });
  } else {
    std::vector<float> copied(static_cast<size_t>(s.channels));
    for (int64_t place = 0; place < s.places; ++place) {
      for (int64_t group = 0; group < s.groups && !marks[place]; ++group) {
        if (!open(s, place, group)) continue;
        const float *row = s.scores + place * s.place_stride +
                           group * s.group_stride * s.channel_stride;
        const float base = s.background ? row[s.channels * s.channel_stride] : 0.0f;
        const float *scores = row;
        if (s.channel_stride != 1) {
          for (int64_t c = 0; c < s.channels; ++c) copied[c] = row[c * s.channel_stride];
          scores = copied.data();
        }
        marks[place] = any_reaches(scores, s.channels, base + threshold);
      }
    }
  }
  return threshold;
}

// Writes the numbers of the places, ascending, and returns how many, or -1 without memory.
CLIPQ_API int64_t clipq_select(const ClipqSelect *spec, int64_t *found) {
  try {
    static thread_local std::vector<uint8_t> marks;
    clipq_mark_places(*spec, marks);
    align(marks);
    int64_t count = 0;
    for (int64_t place = 0; place < spec->places; ++place) {
      found[count] = place;
      count += marks[place];
    }
    return count;
  } catch (const std::exception &) {
    return -1;
  }
}
