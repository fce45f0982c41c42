// Largest code of each window, sixteen channels of a pixel per thread.

#include "chunk.cuh"
#include "steps.cuh"

namespace {

struct MaxPool {
  ClipqMaxPool s;
  const uint8_t *src;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const PixelChunk at(i, s.rows, s.columns, s.channels);
    const uint32_t smallest = s.is_signed ? 0x80808080u : 0u;
    Chunk best{{smallest, smallest, smallest, smallest}};
    for (int64_t r = 0; r < s.kernel[0]; ++r) {
      const int64_t y = at.row * s.step[0] - s.padding[0] + r * s.dilation[0];
      if (y < 0 || y >= s.height) continue;
      for (int64_t q = 0; q < s.kernel[1]; ++q) {
        const int64_t x = at.column * s.step[1] - s.padding[1] + q * s.dilation[1];
        if (x < 0 || x >= s.width) continue;
        const int64_t from = ((at.image * s.height + y) * s.width + x) * s.channels + at.first;
        const Chunk codes = load_chunk(src + from, at.count, aligned);
        CLIPQ_UNROLL
        for (int w = 0; w < 4; ++w) {
          best.words[w] = device::largest4(best.words[w], codes.words[w], s.is_signed != 0);
        }
      }
    }
    store_chunk(dst + at.pixel * s.stride + at.first, best, at.count, aligned);
  }
};

}  // namespace

void clipq_launch(const ClipqMaxPool &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  MaxPool body{spec, buffers.at<const uint8_t>(spec.src), buffers.at<uint8_t>(spec.dst),
               false};
  body.aligned = whole_chunks(spec.channels, spec.stride, body.src, body.dst);
  device::launch_items(body, pixel_chunks(spec.images * spec.rows * spec.columns, spec.channels),
                       stream);
}
