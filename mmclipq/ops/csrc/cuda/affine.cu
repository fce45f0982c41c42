// One multiplication and one addition for each channel of codes, with given factors or with those of
// group and layer normalization, whose statistics are exact integers (ir.Normalize).

#include "activations.cuh"
#include "chunk.cuh"
#include "steps.cuh"

namespace {

CLIPQ_DEVICE void write_affine(const ClipqAffine &s, uint8_t code, float m, float b, void *dst,
                               int64_t place) {
  float v = device::mul(code_value(code, s.src_signed, s.src_offset), m);
  v = activate(s.activation, device::add(v, b), s.alpha);
  if (s.dst_float) {
    static_cast<float *>(dst)[place] = v;
  } else {
    const uint32_t result = to_code(device::mul(v, s.scale), s.dst_signed != 0, s.dst_offset);
    static_cast<uint8_t *>(dst)[place] = static_cast<uint8_t>(result);
  }
}

struct Affine {
  ClipqAffine s;
  const uint8_t *src;
  void *dst;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const int64_t pixel = i / s.channels, c = i - pixel * s.channels;
    write_affine(s, src[i], s.multiplier[c], s.bias[c], dst, pixel * s.stride + c);
  }
};

// A block for each group of an image: its sums, then its results.
struct NormalizeKernel {
  struct Args {
    ClipqAffine s;
    const uint8_t *src;
    void *dst;
  };
  static constexpr int kThreads = 128, kBlocks = 0;
  static constexpr int kShared = 2 * kThreads * static_cast<int>(sizeof(int64_t));

  static CLIPQ_DEVICE void run(const Args &args, uint8_t *shared) {
    const ClipqAffine &s = args.s;
    const int t = device::thread();
    const int64_t each = s.channels / s.groups, first = device::block_y() * each;
    const int64_t pixel = device::block_x() * s.pixels, count = s.pixels * each;
    const uint8_t *src = args.src + pixel * s.channels + first;
    int64_t sum = 0, square = 0;
    for (int64_t i = t; i < count; i += kThreads) {
      const int64_t row = i / each;
      const int q = code_steps(src[row * s.channels + (i - row * each)], s.src_signed, s.src_offset);
      sum += q;
      square += q * q;
    }
    int64_t *sums = reinterpret_cast<int64_t *>(shared), *squares = sums + kThreads;
    sums[t] = sum;
    squares[t] = square;
    for (int half = kThreads / 2; half > 0; half /= 2) {
      device::synchronize();
      if (t < half) {
        sums[t] += sums[t + half];
        squares[t] += squares[t + half];
      }
    }
    device::synchronize();
    const double n = device::from_long(count), step = s.step;
    const double mean = device::div(device::from_long(sums[0]), n);
    double variance =
        device::sub(device::div(device::from_long(squares[0]), n), device::mul(mean, mean));
    variance = variance > 0.0 ? variance : 0.0;
    variance = device::add(device::mul(variance, device::mul(step, step)), s.eps);
    const double inverse = device::div(1.0, device::square_root(variance));
    const double centre = device::mul(mean, step);
    for (int64_t i = t; i < count; i += kThreads) {
      const int64_t row = i / each, c = first + (i - row * each);
      const double g = device::mul(static_cast<double>(s.multiplier[c]), inverse);
      const float m = device::to_float(device::mul(g, step));
      const double b = device::sub(static_cast<double>(s.bias[c]), device::mul(centre, g));
      write_affine(s, args.src[(pixel + row) * s.channels + c], m, device::to_float(b), args.dst,
                   (pixel + row) * s.stride + c);
    }
  }
};

}  // namespace

void clipq_launch(const ClipqAffine &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<void>(spec.dst);
  if (spec.statistics == kGiven) {
    const int64_t count = spec.images * spec.pixels * spec.channels;
    return device::launch_items(Affine{spec, src, dst}, count, stream);
  }
  NormalizeKernel::Args args{spec, src, dst};
  if (spec.statistics == kOfPixels) {  // each pixel is an image of one group
    args.s.images *= spec.pixels;
    args.s.pixels = args.s.groups = 1;
  }
  if (args.s.images * args.s.pixels == 0) return;
  device::launch_blocks<NormalizeKernel>(args, static_cast<int>(args.s.images),
                                         static_cast<int>(args.s.groups), 1, stream);
}
