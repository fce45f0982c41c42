// RoIAlign on int8 or uint8 codes with channels last, operation by operation as
// mmclipq/backends/roi_align.py defines it; sixteen channels of one bin per thread. Codes stand for
// their values: steps are powers of two, so they scale every rounding exactly and are applied once
// at the end.

#include "chunk.cuh"
#include "steps.cuh"

namespace {

constexpr int kMaxLevels = 8;

struct Level {
  const uint8_t *codes;
  int height, width;
  float scale;
};

struct Sample {
  int low, high;
  float below, above;
  bool counts;
};

// One axis of a region: its bins and their samples.
struct Axis {
  float first, width;
  int samples, pixels;

  CLIPQ_DEVICE Axis(float start, float end, int bins, int size, float scale,
                    const ClipqRoIAlign &spec) {
    const float offset = spec.aligned ? 0.5f : 0.0f;
    first = device::sub(device::mul(start, scale), offset);
    float side = device::sub(device::sub(device::mul(end, scale), offset), first);
    if (!spec.aligned && side < 1.0f) side = 1.0f;
    width = device::div(side, device::from_int(bins));
    samples = static_cast<int>(spec.sampling_ratio);
    if (samples <= 0) samples = width > 0.0f ? static_cast<int>(ceilf(width)) : 0;
    pixels = size;
  }

  CLIPQ_DEVICE Sample sample(int bin, int i) const {
    const float limit = device::from_int(pixels);
    const float corner = device::add(first, device::mul(device::from_int(bin), width));
    const float within = device::mul(device::add(device::from_int(i), 0.5f), width);
    float position = device::add(corner, device::div(within, device::from_int(samples)));
    Sample result{0, 0, 1.0f, 0.0f, position >= -1.0f && position <= limit};
    position = position > 0.0f ? position : 0.0f;
    position = position < limit ? position : limit;
    result.low = static_cast<int>(position);
    if (result.low >= pixels - 1) {
      result.low = result.high = pixels - 1;
    } else {
      result.high = result.low + 1;
      result.above = device::sub(position, device::from_int(result.low));
    }
    result.below = device::sub(1.0f, result.above);
    return result;
  }
};

struct RoIAlign {
  ClipqRoIAlign spec;
  Level level[kMaxLevels];
  const float *rois;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE int level_of(const float *roi) const {
    const float area = device::mul(device::sub(roi[3], roi[1]), device::sub(roi[4], roi[2]));
    const float size =
        device::add(device::div(device::square_root(area), spec.finest_scale), 1e-6f);
    int found = 0;
    for (float bound = 2.0f; found + 1 < spec.levels && size >= bound; bound *= 2.0f) ++found;
    return found;
  }

  CLIPQ_DEVICE void operator()(int64_t item) const {
    const PixelChunk at(item, spec.rows, spec.columns, spec.channels);  // an image is a region
    const int p = static_cast<int>(at.row), q = static_cast<int>(at.column);
    const float *roi = rois + 5 * at.image;
    const Level &map = level[level_of(roi)];
    const Axis y(roi[2], roi[4], static_cast<int>(spec.rows), map.height, map.scale, spec);
    const Axis x(roi[1], roi[3], static_cast<int>(spec.columns), map.width, map.scale, spec);
    const uint8_t *codes = map.codes + at.first +
                           static_cast<int64_t>(roi[0]) * map.height * map.width * spec.channels;
    float total[kChunk];
    CLIPQ_UNROLL
    for (int c = 0; c < kChunk; ++c) total[c] = 0.0f;
    for (int iy = 0; iy < y.samples; ++iy) {
      const Sample row = y.sample(p, iy);
      if (!row.counts) continue;
      for (int ix = 0; ix < x.samples; ++ix) {
        const Sample column = x.sample(q, ix);
        if (!column.counts) continue;
        const int64_t above = static_cast<int64_t>(row.low) * map.width;
        const int64_t below = static_cast<int64_t>(row.high) * map.width;
        const Chunk v1 = load_chunk(codes + (above + column.low) * spec.channels, at.count, aligned);
        const Chunk v2 = load_chunk(codes + (above + column.high) * spec.channels, at.count, aligned);
        const Chunk v3 = load_chunk(codes + (below + column.low) * spec.channels, at.count, aligned);
        const Chunk v4 = load_chunk(codes + (below + column.high) * spec.channels, at.count, aligned);
        const float w1 = device::mul(row.below, column.below);
        const float w2 = device::mul(row.below, column.above);
        const float w3 = device::mul(row.above, column.below);
        const float w4 = device::mul(row.above, column.above);
        CLIPQ_UNROLL
        for (int c = 0; c < kChunk; ++c) {
          float sample = device::mul(w1, code_value(v1.get(c), spec.src_signed, spec.src_offset));
          sample = device::add(sample, device::mul(w2, code_value(v2.get(c), spec.src_signed, spec.src_offset)));
          sample = device::add(sample, device::mul(w3, code_value(v3.get(c), spec.src_signed, spec.src_offset)));
          sample = device::add(sample, device::mul(w4, code_value(v4.get(c), spec.src_signed, spec.src_offset)));
          total[c] = device::add(total[c], sample);
        }
      }
    }
    const int samples = y.samples * x.samples;
    const float divisor = device::from_int(samples > 1 ? samples : 1);
    Chunk result{};
    CLIPQ_UNROLL
    for (int c = 0; c < kChunk; ++c) {
      const float v = device::mul(device::div(total[c], divisor), spec.scale);
      result.put(c, to_code(v, spec.dst_signed != 0, spec.dst_offset));
    }
    store_chunk(dst + at.pixel * spec.channels + at.first, result, at.count, aligned);
  }
};

}  // namespace

void clipq_launch(const ClipqRoIAlign &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  if (spec.levels > kMaxLevels) throw std::runtime_error("RoIAlign reads at most 8 levels");
  RoIAlign body{};
  body.spec = spec;
  body.rois = buffers.at<const float>(spec.rois);
  body.dst = buffers.at<uint8_t>(spec.dst);
  body.aligned = whole_chunks(spec.channels, spec.channels, body.dst);
  for (int64_t i = 0; i < spec.levels; ++i) {
    const ClipqLevel &level = spec.level[i];
    body.level[i] = {buffers.at<const uint8_t>(level.codes), static_cast<int>(level.height),
                     static_cast<int>(level.width), level.scale};
    body.aligned = body.aligned && is_aligned(body.level[i].codes);
  }
  device::launch_items(body, pixel_chunks(spec.count * spec.rows * spec.columns, spec.channels),
                       stream);
}
