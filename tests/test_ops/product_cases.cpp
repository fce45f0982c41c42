// Runs layers of many kinds on random codes and writes all results, so that builds for different
// processors can be compared byte for byte. Prints the number of layers to stderr.

#include <cstdio>
#include <cstring>

#include "product.h"

CLIPQ_API int32_t clipq_limit_generation(int32_t most);
CLIPQ_API void clipq_set_threads(int32_t count);

namespace {

// The same numbers on every processor (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t count) { return static_cast<int64_t>(next() % static_cast<uint64_t>(count)); }
  template <typename T, size_t n>
  T of(const T (&values)[n]) {
    return values[below(n)];
  }

 private:
  uint64_t state_;
};

std::vector<uint8_t> bytes(Random &random, int64_t count) {
  const bool extreme = random.below(4) == 0;
  std::vector<uint8_t> result(static_cast<size_t>(count));
  const uint8_t ends[] = {0, 127, 128, 255};
  for (auto &byte : result) byte = extreme ? random.of(ends) : static_cast<uint8_t>(random.next());
  return result;
}

std::vector<float> floats(Random &random, int64_t count, float low, float high) {
  std::vector<float> result(static_cast<size_t>(count));
  for (auto &v : result) {
    v = low + (high - low) * static_cast<float>(random.below(1 << 20)) / static_cast<float>(1 << 20);
  }
  return result;
}

void run(Random &random) {
  const int64_t channels[] = {1, 3, 16, 20, 37, 64}, outputs[] = {1, 8, 19, 48, 67};
  const int64_t kernels[] = {1, 3, 5}, steps[] = {1, 1, 2};
  const int32_t types[] = {kInt8, kUint8}, offsets[] = {0, 0, 8, 64};
  ClipqProduct p{};
  p.channels = random.of(channels);
  p.outputs = random.of(outputs);
  p.groups = 1;
  const int64_t way = random.below(4);
  if (way == 0) p.outputs = p.groups = p.channels;
  if (way == 1) p.channels *= 2, p.outputs *= 2, p.groups = 2;
  p.linear = way == 2 && random.below(3) == 0;
  const int64_t kernel = p.linear ? 1 : random.of(kernels), step = p.linear ? 1 : random.of(steps);
  const int64_t dilation = kernel > 1 && random.below(4) == 0 ? 2 : 1;
  const int64_t padding = p.linear ? 0 : random.below(kernel + 1), reach = (kernel - 1) * dilation + 1;
  int64_t src_side[2], dst_side[2];
  for (int axis = 0; axis < 2; ++axis) {
    p.kernel[axis] = kernel, p.step[axis] = step, p.dilation[axis] = dilation;
    p.padding[axis] = padding;
    src_side[axis] = p.linear ? 1 : reach + random.below(axis ? 60 : 12);
    dst_side[axis] = (src_side[axis] + 2 * padding - reach) / step + 1;
  }
  p.src_type = random.of(types), p.dst_type = random.below(5) ? random.of(types) : kFloat;
  p.src_offset = p.src_type == kUint8 ? random.of(offsets) : 0;
  p.dst_offset = p.dst_type == kUint8 ? random.of(offsets) : 0;
  p.activation = static_cast<int32_t>(random.below(kExp + 1));
  p.alpha = p.activation == kClip ? 6.0f : 0.1f;
  p.scale = 16.0f;
  p.residual_order = way == 0 ? 0 : static_cast<int32_t>(random.below(3));
  p.residual_type = random.of(types);
  p.residual_offset = p.residual_type == kUint8 ? random.of(offsets) : 0;
  p.residual_scale = 0.0625f;

  const int64_t images = 1 + random.below(2), pixels = images * dst_side[0] * dst_side[1];
  const int64_t taps = p.channels / p.groups * kernel * kernel;
  const auto weights = bytes(random, p.outputs * taps);
  const float most = 8.0f / (static_cast<float>(taps) * 4096.0f);
  const auto multiplier = floats(random, p.outputs, most / 16, most);
  const auto bias = floats(random, p.outputs, -2, 2);
  const auto src = bytes(random, images * src_side[0] * src_side[1] * p.channels);
  const auto residual = bytes(random, pixels * p.outputs);
  std::vector<uint8_t> dst(static_cast<size_t>(pixels * p.outputs * (p.dst_type == kFloat ? 4 : 1)));

  using clipq::Shape;
  const auto layer = clipq::direct_layer(p, reinterpret_cast<const int8_t *>(weights.data()),
                                         multiplier.data(), bias.data());
  const Shape from = p.linear ? Shape{images, p.channels}
                              : Shape{images, p.channels, src_side[0], src_side[1]};
  const Shape to = p.linear ? Shape{images, p.outputs}
                            : Shape{images, p.outputs, dst_side[0], dst_side[1]};
  const auto compiled = layer->compile(from, to, Shape{padding, padding}, false);
  std::vector<char> scratch(static_cast<size_t>(compiled->scratchpad) + 64);
  char *aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
  compiled->run(src.data(), dst.data(), p.outputs,
                p.residual_order ? residual.data() : nullptr, aligned);
  std::fwrite(dst.data(), 1, dst.size(), stdout);
}

}  // namespace

// Arguments: the number of layers, and the best generation of instructions that they may use.
int main(int count, char **arguments) {
  if (count != 3) return 2;
  int layers = 0, generation = 0;
  std::sscanf(arguments[1], "%d", &layers);
  std::sscanf(arguments[2], "%d", &generation);
  std::fprintf(stderr, "generation %d\n", clipq_limit_generation(generation));
  clipq_set_threads(2);
  for (int i = 0; i < layers; ++i) {
    Random random(static_cast<uint64_t>(i));
    run(random);
  }
  return 0;
}
