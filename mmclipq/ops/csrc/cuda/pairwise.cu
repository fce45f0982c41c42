// Sums and products of two tensors of codes with any activation, one item per thread, so that the
// long code of smooth activations stands once in a kernel.

#include "activations.cuh"
#include "chunk.cuh"
#include "steps.cuh"

namespace {

struct Pairwise {
  ClipqPairwise s;
  const uint8_t *a, *b;
  uint8_t *dst;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const int64_t pixel = i / s.channels, c = i - pixel * s.channels;
    const int64_t line = pixel / s.columns, column = pixel - line * s.columns;
    const int64_t image = line / s.rows, row = line - image * s.rows;
    const auto value = [&](const uint8_t *codes, const int64_t *strides, int32_t is_signed,
                           int32_t offset, float step) {
      const int64_t place =
          image * strides[0] + row * strides[1] + column * strides[2] + c * strides[3];
      return device::mul(code_value(codes[place], is_signed, offset), step);
    };
    float v = value(a, s.a_strides, s.a_signed, s.a_offset, s.a_step);
    if (b != nullptr) {
      const float other = value(b, s.b_strides, s.b_signed, s.b_offset, s.b_step);
      v = s.product ? device::mul(v, other) : device::add(v, other);
    }
    v = device::mul(activate(s.activation, v, s.alpha), s.scale);
    dst[pixel * s.stride + c] =
        static_cast<uint8_t>(to_code(v, s.dst_signed != 0, s.dst_offset));
  }
};

void launch(const ClipqPairwise &spec, const uint8_t *a, const uint8_t *b, uint8_t *dst,
            ClipqStream stream) {
  const int64_t count = spec.images * spec.rows * spec.columns * spec.channels;
  device::launch_items(Pairwise{spec, a, b, dst}, count, stream);
}

}  // namespace

void clipq_launch(const ClipqPairwise &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  launch(spec, buffers.at<const uint8_t>(spec.a), buffers.at<const uint8_t>(spec.b),
         buffers.at<uint8_t>(spec.dst), stream);
}

void launch_smooth_sum(const ClipqSum &sum, const uint8_t *a, const uint8_t *b, uint8_t *dst,
                       ClipqStream stream) {
  ClipqPairwise spec{};
  spec.images = spec.rows = 1;
  spec.columns = sum.rows.rows;
  spec.channels = sum.rows.channels;
  spec.stride = sum.rows.stride;
  for (int64_t *strides : {spec.a_strides, spec.b_strides}) {
    strides[2] = spec.channels;
    strides[3] = 1;
  }
  spec.a_signed = sum.a_signed;
  spec.b_signed = sum.b_signed;
  spec.dst_signed = sum.dst_signed;
  spec.activation = sum.activation;
  spec.a_offset = sum.a_offset;
  spec.b_offset = sum.b_offset;
  spec.dst_offset = sum.dst_offset;
  spec.a_step = sum.a_step;
  spec.b_step = sum.b_step;
  spec.scale = sum.scale;
  spec.alpha = sum.alpha;
  launch(spec, a, b, dst, stream);
}
