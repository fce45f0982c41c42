// Averages of windows of codes: exact sums, one product with the inverse count; sixteen channels of a
// pixel per thread.

#include "chunk.cuh"
#include "steps.cuh"

namespace {

struct AvgPool {
  ClipqAvgPool s;
  const uint8_t *src;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const PixelChunk at(i, s.rows, s.columns, s.channels);
    int sums[kChunk];
    CLIPQ_UNROLL
    for (int c = 0; c < kChunk; ++c) sums[c] = 0;
    for (int64_t r = 0; r < s.kernel[0]; ++r) {
      const int64_t y = at.row * s.step[0] - s.padding[0] + r;
      if (y < 0 || y >= s.height) continue;
      for (int64_t q = 0; q < s.kernel[1]; ++q) {
        const int64_t x = at.column * s.step[1] - s.padding[1] + q;
        if (x < 0 || x >= s.width) continue;
        const int64_t from = ((at.image * s.height + y) * s.width + x) * s.channels + at.first;
        const Chunk codes = load_chunk(src + from, at.count, aligned);
        CLIPQ_UNROLL
        for (int c = 0; c < kChunk; ++c) {
          sums[c] += code_steps(codes.get(c), s.src_signed, s.src_offset);
        }
      }
    }
    const float inverse = s.inverse[at.row * s.columns + at.column];
    Chunk result{};
    CLIPQ_UNROLL
    for (int c = 0; c < kChunk; ++c) {
      const float v = device::mul(device::mul(device::from_int(sums[c]), inverse), s.scale);
      result.put(c, to_code(v, s.dst_signed != 0, s.dst_offset));
    }
    store_chunk(dst + at.pixel * s.stride + at.first, result, at.count, aligned);
  }
};

}  // namespace

void clipq_launch(const ClipqAvgPool &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  AvgPool body{spec, buffers.at<const uint8_t>(spec.src), buffers.at<uint8_t>(spec.dst), false};
  body.aligned = whole_chunks(spec.channels, spec.stride, body.src, body.dst);
  device::launch_items(body, pixel_chunks(spec.images * spec.rows * spec.columns, spec.channels),
                       stream);
}
