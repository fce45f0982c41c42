// The Lq loss of one weight tensor and its gradient, each in one pass over memory.

#include <algorithm>
#include <cmath>
#include <exception>
#include <vector>

#include "api.h"

// Weights to codes by `scale`, a power of two; C(w) is the nearest code, or the weight clipped to
// `limit` where `rounds` is 0.
struct ClipqLq {
  const float *weights;
  int64_t count;
  float scale, limit;
  int32_t rounds;
};

namespace {

constexpr int64_t kBlock = 1 << 16;
constexpr int64_t kLanes = 16;

// w - C(w) in steps; exact, because steps are powers of two. Codes are integers, so that clipping
// before rounding gives what clipping after it does. A NaN stays one.
CLIPQ_INLINE float distance(const ClipqLq &s, float weight) {
  const float scaled = weight * s.scale;
  if (s.rounds) {
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: sums with it have no fraction left
    const float inside = std::min(std::max(scaled, -128.0f), 127.0f);
    return scaled - ((inside + kRounder) - kRounder);
  }
  return (weight - std::min(std::max(weight, -s.limit), s.limit)) * s.scale;
}

CLIPQ_VECTORIZED double add_up(const ClipqLq &s, int64_t first, int64_t end) {
  float lanes[kLanes] = {};
  double sum = 0.0;
  int64_t i = first;
  while (i + kLanes <= end) {
    // Few enough that float32 sums of squares keep their precision.
    const int64_t stop = std::min(end - kLanes, i + 63 * kLanes);
    for (; i <= stop; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float d = distance(s, s.weights[i + lane]);
        lanes[lane] += d * d;
      }
    }
    for (float &lane : lanes) sum += lane, lane = 0.0f;
  }
  for (; i < end; ++i) {
    const float d = distance(s, s.weights[i]);
    sum += d * d;
  }
  return sum;
}

CLIPQ_VECTORIZED void differentiate(const ClipqLq &s, float factor, int64_t first, int64_t end,
                                    float *gradient) {
  for (int64_t i = first; i < end; ++i) gradient[i] = distance(s, s.weights[i]) * factor;
}

}  // namespace

// The sum of squared distances, in squared steps, the same with any number of threads; NaN without
// memory.
CLIPQ_API double clipq_lq_sum(const ClipqLq *spec) {
  try {
    const int64_t blocks = (spec->count + kBlock - 1) / kBlock;
    std::vector<double> sums(static_cast<size_t>(blocks));
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; ++b) {
      sums[b] = add_up(*spec, b * kBlock, std::min(spec->count, (b + 1) * kBlock));
    }
    double all = 0.0;
    for (const double sum : sums) all += sum;
    return all;
  } catch (const std::exception &) {
    return NAN;
  }
}

// Distances times `factor`.
CLIPQ_API void clipq_lq_gradient(const ClipqLq *spec, float factor, float *gradient) {
  const int64_t blocks = (spec->count + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    differentiate(*spec, factor, b * kBlock, std::min(spec->count, (b + 1) * kBlock), gradient);
  }
}
