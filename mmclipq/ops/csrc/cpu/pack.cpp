// The order of weights in which the kernels of the direct layers read them.

#include <algorithm>

#include "direct.h"

namespace clipq {
namespace {

constexpr size_t kBeyond = 64;  // terms that kernels may read beyond the last

// Writes `value` as number `at` of `item` bytes.
void put(std::vector<char> &numbers, int64_t item, int64_t at, int32_t value) {
  char *to = numbers.data() + at * item;
  if (item == 1) {
    *to = static_cast<char>(value);
  } else {
    *reinterpret_cast<int16_t *>(to) = static_cast<int16_t>(value);
  }
}

}  // namespace

int64_t pixels_together(const ClipqProduct &spec, const Kernels &kernels) {
  if (kernels.item != 1 || kernels.lanes != 16 || spec.groups != 1) return 1;
  return spec.outputs == 24 ? 2 : spec.outputs == 12 ? 4 : 1;
}

std::vector<Block> split_blocks(int64_t outputs, const Kernels &kernels) {
  const int64_t vectors = (outputs + kernels.lanes - 1) / kernels.lanes;
  const int64_t count = (vectors + kernels.vectors - 1) / kernels.vectors;
  std::vector<Block> blocks;
  int64_t first = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t some = vectors / count + (i < vectors % count);
    blocks.push_back({first, std::min(some * kernels.lanes, outputs - first), 0, some, 0});
    first += some * kernels.lanes;
  }
  return blocks;
}

// [block][run][step][channel][together]; a run is a row of the kernel where its taps lie side by side
// in the source, else one tap.
std::shared_ptr<const PackedWeights> pack_blocks(const ClipqProduct &spec, const int8_t *weights,
                                                 const Kernels &kernels) {
  auto packed = std::make_shared<PackedWeights>();
  const int64_t *kernel = spec.kernel;
  const int64_t depth = spec.channels / spec.groups, outputs = spec.outputs / spec.groups;
  packed->joined = spec.groups == 1 && spec.dilation[1] == 1;
  const int64_t taps = packed->joined ? kernel[1] : 1;  // of a run
  const int64_t runs = kernel[0] * kernel[1] / taps, together = kernels.together;
  packed->steps = (taps * depth + together - 1) / together;
  packed->pixels = pixels_together(spec, kernels);
  packed->terms.resize(static_cast<size_t>(spec.outputs * packed->pixels) + kBeyond);
  // Codes are multiplied as bytes; what those are above the values is taken off.
  const int32_t subtrahend =
      kernels.item == 1
          ? ClipqCodes(spec.src_type == kInt8, spec.src_offset).subtrahend - kernels.sign
          : 0;
  for (int64_t group = 0; group < spec.groups; ++group) {
    for (Block block : split_blocks(outputs * packed->pixels, kernels)) {
      block.first += group * outputs;
      block.channel = group * depth;
      block.weights = static_cast<int64_t>(packed->numbers.size());
      const int64_t lanes = kernels.lanes * block.vectors, start = block.weights / kernels.item;
      packed->numbers.resize(packed->numbers.size() + static_cast<size_t>(
          runs * packed->steps * lanes * together * kernels.item));
      for (int64_t run = 0; run < runs; ++run) {
        for (int64_t k = 0; k < taps * depth; ++k) {
          const int64_t tap = run * taps + k / depth, c = k % depth;
          for (int64_t o = 0; o < block.count; ++o) {
            const int8_t weight =
                weights[((block.first + o) % spec.outputs * depth + c) * kernel[0] * kernel[1] + tap];
            const int64_t row = (run * packed->steps + k / together) * lanes + o;
            put(packed->numbers, kernels.item, start + row * together + k % together, weight);
            packed->terms[static_cast<size_t>(block.first + o)] -= subtrahend * weight;
          }
        }
      }
      block.count = std::min(block.count, outputs);
      packed->blocks.push_back(block);
    }
  }
  return packed;
}

// [block][pair of taps][low, high][channel][2], channels as unpacking leaves them.
std::shared_ptr<const PackedWeights> pack_depthwise(const ClipqProduct &spec,
                                                    const int8_t *weights) {
  auto packed = std::make_shared<PackedWeights>();
  const int64_t taps = spec.kernel[0] * spec.kernel[1], pairs = (taps + 1) / 2;
  for (int64_t first = 0; first < spec.outputs; first += kBlock) {
    const Block block{first, std::min(kBlock, spec.outputs - first), first, 2,
                      static_cast<int64_t>(packed->numbers.size())};
    packed->numbers.resize(packed->numbers.size() + static_cast<size_t>(pairs * 64));
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t c = 0; c < block.count; ++c) {
        const int64_t high = c % 8 / 4, lane = c % 4 + c / 8 * 4;
        put(packed->numbers, 2, block.weights / 2 + (tap / 2 * 2 + high) * 16 + lane * 2 + tap % 2,
            weights[(first + c) * taps + tap]);
      }
    }
    packed->blocks.push_back(block);
  }
  return packed;
}

}  // namespace clipq
