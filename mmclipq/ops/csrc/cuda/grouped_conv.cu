// Grouped and depthwise convolutions, one result per thread; neighbouring threads have neighbouring
// outputs, so that their weights, and in depthwise ones their inputs, lie side by side.

#include "product.cuh"

namespace {

struct GroupedConv {
  ProductArgs p;

  CLIPQ_DEVICE void operator()(int64_t item) const {
    const int m = static_cast<int>(item / p.outputs), n = static_cast<int>(item - static_cast<int64_t>(m) * p.outputs);
    const int image = m / (p.rows * p.columns), rest = m - image * p.rows * p.columns;
    const int top = rest / p.columns * p.step_y - p.padding_y;
    const int left = rest % p.columns * p.step_x - p.padding_x;
    const int first = n / p.group_outputs * p.group_channels;
    int acc = 0;
    for (int r = 0; r < p.kernel_y; ++r) {
      const int y = top + r * p.dilation_y;
      if (y < 0 || y >= p.height) continue;
      for (int s = 0; s < p.kernel_x; ++s) {
        const int x = left + s * p.dilation_x;
        if (x < 0 || x >= p.width) continue;
        const uint8_t *src =
            p.src + ((static_cast<int64_t>(image) * p.height + y) * p.width + x) * p.src_stride + first;
        const int8_t *weight =
            p.weight + static_cast<int64_t>(r * p.kernel_x + s) * p.group_channels * p.outputs + n;
        for (int c = 0; c < p.group_channels; ++c) {
          const int code = p.src_signed ? static_cast<int8_t>(src[c]) : src[c];
          acc += (code - p.src_offset) * weight[static_cast<int64_t>(c) * p.outputs];
        }
      }
    }
    float r = 0.0f;
    if (p.residual_order) {
      r = residual_value(p, p.residual[residual_pixel(p, m) * p.residual_stride + n]);
    }
    float v = begin(p, acc, p.multiplier[n], p.bias[n], r);
    if (is_smooth(p.activation)) v = activate(p.activation, v, p.alpha);
    v = finish(p, v, r);
    const int64_t place = static_cast<int64_t>(m) * p.dst_stride + n;
    if (p.dst_kind == kFloat) {
      static_cast<float *>(p.dst)[place] = v;
    } else {
      static_cast<uint8_t *>(p.dst)[place] =
          static_cast<uint8_t>(to_code(v, p.dst_kind == kInt8, p.dst_offset));
    }
  }
};

}  // namespace

void launch_grouped_conv(const ProductArgs &args, ClipqStream stream) {
  device::launch_items(GroupedConv{args}, static_cast<int64_t>(args.pixels) * args.outputs, stream);
}
