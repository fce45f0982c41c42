// RoIAlign on int8 or uint8 codes with channels last, operation by operation as
// mmclipq/backends/roi_align.py defines it. To be compiled without contraction to fused
// multiply-adds. Codes stand for their values: steps are powers of two, so they scale every
// rounding exactly and are applied once at the end.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "api.h"
#include "codes.h"

namespace {

struct Sample {
  int64_t low, high;
  float below, above;
  bool counts;
};

// Samples of all bins along one axis, `samples` for each bin.
struct Axis {
  int64_t samples = 0;
  std::vector<Sample> all;

  void place(float start, float end, int64_t bins, int64_t pixels, float scale,
             const ClipqRoIAlign &spec) {
    const float offset = spec.aligned ? 0.5f : 0.0f;
    const float first = start * scale - offset;
    float side = end * scale - offset - first;
    if (!spec.aligned) side = std::max(side, 1.0f);
    const float width = side / static_cast<float>(bins);
    samples = spec.sampling_ratio;
    if (samples <= 0) samples = width > 0 ? static_cast<int64_t>(std::ceil(width)) : 0;
    all.clear();
    const float limit = static_cast<float>(pixels);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const float corner = first + static_cast<float>(bin) * width;
      for (int64_t i = 0; i < samples; ++i) {
        const float within = (static_cast<float>(i) + 0.5f) * width;
        float position = corner + within / static_cast<float>(samples);
        Sample sample{0, 0, 1.0f, 0.0f, position >= -1.0f && position <= limit};
        position = std::min(std::max(position, 0.0f), limit);
        sample.low = static_cast<int64_t>(position);
        if (sample.low >= pixels - 1) {
          sample.low = sample.high = pixels - 1;
        } else {
          sample.high = sample.low + 1;
          sample.above = position - static_cast<float>(sample.low);
        }
        sample.below = 1.0f - sample.above;
        all.push_back(sample);
      }
    }
  }
};

template <typename Code>
CLIPQ_INLINE void add_sample_of(const Code *v1, const Code *v2, const Code *v3, const Code *v4,
                                float w1, float w2, float w3, float w4, int32_t offset,
                                float *total, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    float sample = w1 * static_cast<float>(v1[c] - offset);
    sample += w2 * static_cast<float>(v2[c] - offset);
    sample += w3 * static_cast<float>(v3[c] - offset);
    sample += w4 * static_cast<float>(v4[c] - offset);
    total[c] += sample;
  }
}

CLIPQ_VECTORIZED void add_sample(const int8_t *v1, const int8_t *v2, const int8_t *v3,
                                 const int8_t *v4, float w1, float w2, float w3, float w4,
                                 int32_t offset, float *total, int64_t channels) {
  add_sample_of(v1, v2, v3, v4, w1, w2, w3, w4, offset, total, channels);
}

CLIPQ_VECTORIZED void add_sample(const uint8_t *v1, const uint8_t *v2, const uint8_t *v3,
                                 const uint8_t *v4, float w1, float w2, float w3, float w4,
                                 int32_t offset, float *total, int64_t channels) {
  add_sample_of(v1, v2, v3, v4, w1, w2, w3, w4, offset, total, channels);
}

// Codes of totals: divided by the number of samples, scaled, rounded half to even, saturated.
CLIPQ_VECTORIZED void store(const float *total, float count, float scale, float low, float high,
                            int32_t offset, uint8_t *codes, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    const float v = std::min(std::max(total[c] / count * scale, low), high);
    // Adding 1.5 * 2^23 leaves no room for a fraction, which rounds it half to even.
    const float rounded = (v + 12582912.0f) - 12582912.0f;
    codes[c] = static_cast<uint8_t>(static_cast<int32_t>(rounded) + offset);
  }
}

int64_t level_of(const float *roi, const ClipqRoIAlign &spec) {
  const float area = (roi[3] - roi[1]) * (roi[4] - roi[2]);
  const float size = std::sqrt(area) / spec.finest_scale + 1e-6f;
  int64_t level = 0;
  for (float bound = 2.0f; level + 1 < spec.levels && size >= bound; bound *= 2.0f) ++level;
  return level;
}

template <typename Code>
void align(const ClipqRoIAlign &spec, const ClipqBuffers &buffers) {
  const auto *rois = buffers.at<const float>(spec.rois);
  auto *result = buffers.at<uint8_t>(spec.dst);
  const int64_t channels = spec.channels;
  const ClipqCodes kind(spec.dst_signed, spec.dst_offset);
#pragma omp parallel
  {
    Axis y, x;
    std::vector<float> total(static_cast<size_t>(channels));
#pragma omp for schedule(dynamic, 8)
    for (int64_t k = 0; k < spec.count; ++k) {
      const float *roi = rois + 5 * k;
      const ClipqLevel &level = spec.level[level_of(roi, spec)];
      y.place(roi[2], roi[4], spec.rows, level.height, level.scale, spec);
      x.place(roi[1], roi[3], spec.columns, level.width, level.scale, spec);
      const int64_t image = static_cast<int64_t>(roi[0]);
      const Code *codes = buffers.at<const Code>(level.codes) +
                          image * level.height * level.width * channels;
      const float samples = static_cast<float>(std::max<int64_t>(y.samples * x.samples, 1));
      uint8_t *out = result + k * spec.rows * spec.columns * channels;
      for (int64_t p = 0; p < spec.rows; ++p) {
        for (int64_t q = 0; q < spec.columns; ++q, out += channels) {
          std::memset(total.data(), 0, total.size() * sizeof(float));
          for (int64_t iy = 0; iy < y.samples; ++iy) {
            const Sample &row = y.all[p * y.samples + iy];
            for (int64_t ix = 0; ix < x.samples; ++ix) {
              const Sample &column = x.all[q * x.samples + ix];
              if (!row.counts || !column.counts) continue;
              const Code *above = codes + row.low * level.width * channels;
              const Code *below = codes + row.high * level.width * channels;
              add_sample(above + column.low * channels, above + column.high * channels,
                         below + column.low * channels, below + column.high * channels,
                         row.below * column.below, row.below * column.above,
                         row.above * column.below, row.above * column.above, spec.src_offset,
                         total.data(), channels);
            }
          }
          store(total.data(), samples, spec.scale, kind.low, kind.high, kind.offset, out, channels);
        }
      }
    }
  }
}

}  // namespace

void clipq_step(const ClipqRoIAlign &spec, const ClipqBuffers &buffers) {
  if (spec.src_signed) {
    align<int8_t>(spec, buffers);
  } else {
    align<uint8_t>(spec, buffers);
  }
}
