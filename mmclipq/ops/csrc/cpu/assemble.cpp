// From candidates with their scores to the boxes that stay, in MMDetection's order of operations.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <utility>

#include "boxes.h"
#include "heads.h"

namespace {

constexpr int64_t kLevelsTie = -3, kBoxesTie = -4, kUnusual = -5;
constexpr int64_t kSplit = 10000;  // from here on mmcv suppresses class by class

struct Found {
  float score;
  int64_t level, candidate, label;
};

struct Memory {
  std::vector<Found> found, best;
  std::vector<int64_t> sizes, order, kept;
  std::vector<uint64_t> keys;
  std::vector<float> scores, boxes, shifted;
  std::vector<int64_t> labels, groups;
};

// Numbers by descending score into `order`; false if two scores are equal. Scores are not negative, so
// their bits are ordered as they are.
template <typename Score>
bool sort_down(int64_t count, const Score &score, std::vector<uint64_t> &keys, int64_t *order) {
  keys.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float value = score(i);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    keys[i] = static_cast<uint64_t>(~bits) << 32 | static_cast<uint64_t>(i);
  }
  std::sort(keys.begin(), keys.end());
  bool distinct = true;
  for (int64_t i = 0; i < count; ++i) {
    order[i] = static_cast<int64_t>(keys[i] & 0xffffffffu);
    distinct &= i == 0 || keys[i - 1] >> 32 != keys[i] >> 32;
  }
  return distinct;
}

class Assembler {
 public:
  Assembler(const ClipqHead &head, ClipqImage &image, Memory &memory)
      : head_(head), image_(image), m_(memory) {}

  int64_t assemble() {
    if (!find()) return kUnusual;
    if (!rank()) return kLevelsTie;
    if (!decode()) return kUnusual;
    const auto count = static_cast<int64_t>(m_.scores.size());
    if (count == 0) return 0;
    if (count >= kSplit) return kUnusual;
    m_.order.resize(m_.scores.size());
    const auto score = [&](int64_t i) { return m_.scores[i]; };
    if (image_.has_order) {
      std::copy(image_.order, image_.order + count, m_.order.begin());
    } else if (!sort_down(count, score, m_.keys, m_.order.data())) {
      std::copy(m_.scores.begin(), m_.scores.end(), image_.sorting);
      image_.sizes_total = count;
      return kBoxesTie;
    }
    return suppress(count);
  }

 private:
  bool joined() const { return head_.kind == kYolov3 || head_.kind == kYolox; }

  // Candidates whose scores count, level by level.
  bool find() {
    m_.found.clear();
    m_.sizes.assign(joined() ? 1 : head_.count, 0);
    int64_t candidate = 0;
    total_ = 0;
    for (int64_t level = 0; level < head_.count; ++level) total_ += image_.counts[level];
    for (int64_t level = 0; level < head_.count; ++level) {
      const int64_t end = candidate + image_.counts[level];
      const size_t before = m_.found.size();
      if (head_.kind == kYolox) {
        if (!find_best(level, candidate, end)) return false;
      } else {
        for (int64_t i = candidate; i < end; ++i) {
          if (!(head_.softmax ? find_row(level, i) : find_one(level, i))) return false;
        }
      }
      m_.sizes[joined() ? 0 : level] += static_cast<int64_t>(m_.found.size() - before);
      candidate = end;
    }
    return true;
  }

  bool find_one(int64_t level, int64_t i) {
    const float score = score_of(level, i);
    if (std::isnan(score)) return false;
    if (head_.kind == kYolov3 && head_.factor_threshold > 0 &&
        !(factor_of(level, i) >= head_.factor_threshold)) {
      return true;
    }
    if (head_.kind == kProposals || score > head_.score_threshold) {
      m_.found.push_back({score, level, i, image_.index[i] % head_.classes});
    }
    return true;
  }

  bool find_row(int64_t level, int64_t i) {
    const float *row = image_.values + i * (head_.classes + 1);
    for (int64_t c = 0; c < head_.classes; ++c) {
      if (std::isnan(row[c])) return false;
      if (row[c] > head_.score_threshold) m_.found.push_back({row[c], level, i, c});
    }
    return true;
  }

  // The first of a place's largest scores; its candidates follow one another.
  bool find_best(int64_t level, int64_t i, int64_t end) {
    while (i < end) {
      const int64_t place = image_.index[i] / head_.classes;
      Found best{-1.0f, level, i, 0};
      for (; i < end && image_.index[i] / head_.classes == place; ++i) {
        const float score = score_of(level, i);
        if (std::isnan(score)) return false;
        if (score > best.score) best = {score, level, i, image_.index[i] % head_.classes};
      }
      if (factor_of(level, best.candidate) * best.score >= head_.score_threshold) {
        m_.found.push_back(best);
      }
    }
    return true;
  }

  // The `most` best of each level, by descending score.
  bool rank() {
    m_.best.clear();
    if (head_.kind == kYolox) {
      m_.best = m_.found;
      return true;
    }
    const Found *first = m_.found.data();
    const int64_t *given = image_.orders;
    bool distinct = true;
    for (size_t level = 0; level < m_.sizes.size(); ++level) {
      const int64_t size = m_.sizes[level];
      const int64_t all = head_.levels[level].places * head_.groups * head_.classes;
      m_.order.resize(static_cast<size_t>(size));
      if (head_.kind == kProposals && !(head_.most > 0 && head_.most < all)) {
        m_.best.insert(m_.best.end(), first, first + size);  // as they come
      } else {
        const auto score = [&](int64_t i) { return first[i].score; };
        if (image_.has_orders) {
          std::copy(given, given + size, m_.order.begin());
        } else {
          distinct &= sort_down(size, score, m_.keys, m_.order.data());
        }
        const int64_t most = head_.most > 0 ? std::min(head_.most, size) : size;
        for (int64_t i = 0; i < most; ++i) m_.best.push_back(first[m_.order[i]]);
      }
      first += size, given += size;
    }
    if (distinct) return true;
    for (size_t i = 0; i < m_.found.size(); ++i) image_.sorting[i] = m_.found[i].score;
    std::copy(m_.sizes.begin(), m_.sizes.end(), image_.counts + head_.count);
    image_.sizes_total = static_cast<int64_t>(m_.sizes.size());
    return false;
  }

  bool decode() {
    m_.scores.clear(), m_.boxes.clear(), m_.labels.clear(), m_.groups.clear();
    for (const Found &found : m_.best) {
      float box[4];
      decode_one(found, box);
      for (int i = 0; i < 4; ++i) {
        if (image_.scaling == 1) box[i] *= i % 2 ? image_.scale_y : image_.scale_x;
        if (image_.scaling == 2) box[i] /= i % 2 ? image_.scale_y : image_.scale_x;
        if (!std::isfinite(box[i])) return false;
      }
      float score = found.score;
      if (head_.has_factors) score *= factor_of(found.level, found.candidate);
      if (std::isnan(score)) return false;
      if (head_.smallest >= 0 &&
          !(box[2] - box[0] > head_.smallest && box[3] - box[1] > head_.smallest)) {
        continue;
      }
      m_.scores.push_back(score);
      m_.boxes.insert(m_.boxes.end(), box, box + 4);
      m_.labels.push_back(head_.kind == kProposals ? 0 : found.label);
      m_.groups.push_back(head_.kind == kProposals ? found.level : found.label);
    }
    return true;
  }

  void decode_one(const Found &found, float *box) const {
    const ClipqHeadLevel &level = head_.levels[found.level];
    const ClipqHeadMaps &maps = image_.maps[found.level];
    const int64_t anchor = anchor_of(found.candidate);
    const int64_t place = anchor / head_.groups, group = anchor % head_.groups;
    float given[4];
    for (int64_t i = 0; i < 4; ++i) {
      given[i] = *ClipqHeadMaps::at(maps.boxes, level.boxes, place, group * head_.box_group + i);
    }
    const float *grown = image_.exponents + 2 * found.candidate;
    const float *prior = maps.priors + anchor * (head_.coder == kDistance ? 2 : 4);
    float centre[2] = {}, half[2] = {};
    for (int i = 0; i < 2; ++i) {
      switch (head_.coder) {
        case kDelta: {
          const float size = prior[2 + i] - prior[i];
          const float shift = size * (given[i] * head_.stds[i] + head_.means[i]);
          centre[i] = (prior[i] + prior[2 + i]) * 0.5f + shift;
          half[i] = size * grown[i] * 0.5f;
          break;
        }
        case kCellDelta:
          centre[i] = (prior[i] + prior[2 + i]) * 0.5f +
                      (clipq_sigmoid(given[i]) - 0.5f) * level.stride;
          half[i] = (prior[2 + i] - prior[i]) * 0.5f * grown[i];
          break;
        case kCentre:
          centre[i] = given[i] * prior[2 + i] + prior[i];
          half[i] = grown[i] * prior[2 + i] / 2.0f;
          break;
        default:
          box[i] = prior[i] - given[i];
          box[2 + i] = prior[i] + given[2 + i];
      }
      if (head_.coder != kDistance) box[i] = centre[i] - half[i], box[2 + i] = centre[i] + half[i];
    }
    if (!head_.clips) return;
    for (int i = 0; i < 4; ++i) {
      box[i] = std::min(std::max(box[i], 0.0f), i % 2 ? image_.height : image_.width);
    }
  }

  int64_t suppress(int64_t count) {
    const float *boxes = m_.boxes.data();
    if (!head_.agnostic) {
      const float farthest = *std::max_element(m_.boxes.begin(), m_.boxes.end());
      m_.shifted.resize(m_.boxes.size());
      for (int64_t i = 0; i < count; ++i) {
        const float offset = static_cast<float>(m_.groups[i]) * (farthest + 1.0f);
        for (int c = 0; c < 4; ++c) m_.shifted[4 * i + c] = boxes[4 * i + c] + offset;
      }
      boxes = m_.shifted.data();
    }
    m_.kept.resize(static_cast<size_t>(count));
    const int64_t most = head_.kept > 0 ? std::min(head_.kept, count) : count;
    const int64_t kept = clipq_suppress(boxes, m_.order.data(), count, head_.overlap, 0.0f, most,
                                        m_.kept.data());
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t number = m_.kept[i];
      std::copy_n(m_.boxes.data() + 4 * number, 4, image_.out_boxes + 4 * i);
      image_.out_scores[i] = m_.scores[number];
      image_.out_labels[i] = m_.labels[number];
    }
    return kept;
  }

  int64_t anchor_of(int64_t candidate) const {
    const int64_t number = image_.index[candidate];
    return head_.softmax ? number : number / head_.classes;
  }

  float score_of(int64_t level, int64_t candidate) const {
    const ClipqHeadLevel &l = head_.levels[level];
    const int64_t number = image_.index[candidate];
    if (!l.score_run.alone(number)) return image_.values[candidate];
    const int64_t anchor = number / head_.classes;
    const int64_t channel = anchor % head_.groups * head_.score_group + head_.first_class +
                            number % head_.classes;
    return clipq_sigmoid(*ClipqHeadMaps::at(image_.maps[level].scores, l.scores,
                                        anchor / head_.groups, channel));
  }

  float factor_of(int64_t level, int64_t candidate) const {
    const ClipqHeadLevel &l = head_.levels[level];
    const int64_t anchor = anchor_of(candidate);
    if (!l.factor_run.alone(anchor)) return image_.values[total_ + candidate];
    return clipq_sigmoid(*ClipqHeadMaps::at(image_.maps[level].factors, l.factors,
                                        anchor / head_.groups,
                                        anchor % head_.groups * head_.factor_group));
  }

  const ClipqHead &head_;
  ClipqImage &image_;
  Memory &m_;
  int64_t total_ = 0;
};

}  // namespace

// Writes the boxes that stay and returns how many, or -1 without memory, -3 if scores of a level and -4
// if those of boxes are equal, so that the caller must sort them, -5 for numbers that are not finite or
// more boxes than mmcv suppresses at once.
CLIPQ_API int64_t clipq_assemble(const ClipqHead *head, ClipqImage *image) {
  try {
    static thread_local Memory memory;
    return Assembler(*head, *image, memory).assemble();
  } catch (const std::exception &) {
    return -1;
  }
}
