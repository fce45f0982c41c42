// Convolutions and linear layers with their epilogue in one pass. With VNNI quadruples of codes are
// multiplied and added as they are; without, codes less their offset become 16-bit numbers, and pairs
// of products are added exactly (vpmaddwd). Depthwise layers take the 16-bit numbers anywhere.
//
// A task takes a rectangle of the result and some of its channels. It copies the numbers that the
// rectangle needs, with padding around them, so that they stay in the second-level cache (a 1x1 kernel
// reads codes where they are), sums some pixels by some channels at a time in registers, and finishes
// a strip of pixels while the sums are in the first.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "direct.h"
#include "geometry.h"

namespace clipq {
namespace {

constexpr int64_t kSlack = 64;  // numbers that kernels may read beyond the last

class Direct : public Layer {
 public:
  Direct(const ClipqProduct &spec, const int8_t *weights, const float *multiplier,
         const float *bias)
      : spec_(spec),
        depthwise_(is_depthwise(spec)),
        kernels_(has_wide_kernels() && !depthwise_ ? quad_kernels() : pair_kernels()),
        packed_(depthwise_ ? pack_depthwise(spec, weights) : pack_blocks(spec, weights, kernels_)),
        epilogue_(std::make_shared<Epilogue>(spec, multiplier, bias)),
        epilogue_of_pixels_(epilogue_of(spec, multiplier, bias, packed_->pixels)) {}

  std::unique_ptr<Compiled> compile(const Shape &src, const Shape &dst, const Shape &before,
                                    bool) override;

 private:
  // Pixels whose channels are summed together are finished as one of so many times the channels.
  static std::shared_ptr<const Epilogue> epilogue_of(ClipqProduct spec, const float *multiplier,
                                                     const float *bias, int64_t pixels) {
    if (pixels == 1) return nullptr;
    std::vector<float> multipliers, biases;
    for (int64_t i = 0; i < pixels; ++i) {
      multipliers.insert(multipliers.end(), multiplier, multiplier + spec.outputs);
      biases.insert(biases.end(), bias, bias + spec.outputs);
    }
    spec.outputs *= pixels;
    return std::make_shared<Epilogue>(spec, multipliers.data(), biases.data());
  }

  friend class DirectCompiled;
  const ClipqProduct spec_;
  const bool depthwise_;
  const Kernels &kernels_;
  const std::shared_ptr<const PackedWeights> packed_;
  const std::shared_ptr<const Epilogue> epilogue_, epilogue_of_pixels_;
};

class DirectCompiled : public Compiled {
 public:
  DirectCompiled(const Direct &layer, const Geometry &geometry)
      : spec_(layer.spec_),
        depthwise_(layer.depthwise_),
        kernels_(layer.kernels_),
        weights_(layer.packed_),
        epilogue_(layer.epilogue_),
        epilogue_of_pixels_(layer.epilogue_of_pixels_),
        g_(geometry),
        sum_(chosen_sum()),
        threads_(omp_get_max_threads()) {
    const int64_t in_rows = g_.reach(0, g_.tile[0]), in_columns = g_.reach(1, g_.tile[1]);
    numbers_ = g_.in_place ? 0 : in_rows * in_columns * g_.stored + kSlack;
    lanes_ = kernels_.lanes * kernels_.vectors;
    each_ = divided_up(numbers_ * kernels_.item + g_.tile[0] * g_.tile[1] * 4 +
                           kStrip * lanes_ * 4 + 256, 4096) * 4096;
    scratchpad = each_ * threads_;
    offsets_ = layer.depthwise_ ? tap_offsets(in_columns) : run_offsets(in_columns);
    row_numbers_ = in_columns;
  }

  void run(const void *src, void *dst, int64_t dst_stride, const uint8_t *residual,
           void *scratch) const override;

 private:
  struct Task;

  SumBlock chosen_sum() const {
    if (weights_->pixels > 1) return sum_of_pixels(weights_->pixels);
    const bool as_they_are = g_.in_place && spec_.src_type == kInt8 && kernels_.sign == 0;
    return as_they_are ? kernels_.sum_signed : kernels_.sum;
  }

  std::vector<int32_t> run_offsets(int64_t in_columns) const {
    std::vector<int32_t> offsets;
    for (int64_t r = 0; r < g_.kernel[0]; ++r) {
      const int64_t row = r * g_.dilation[0] * in_columns;
      const int64_t taps = weights_->joined ? 1 : g_.kernel[1];
      for (int64_t s = 0; s < taps; ++s) {
        offsets.push_back(
            static_cast<int32_t>((row + s * g_.dilation[1]) * g_.stored * kernels_.item));
      }
    }
    return offsets;
  }

  std::vector<int32_t> tap_offsets(int64_t in_columns) const {
    std::vector<int32_t> offsets;
    for (int64_t r = 0; r < g_.kernel[0]; ++r) {
      for (int64_t s = 0; s < g_.kernel[1]; ++s) {
        offsets.push_back(static_cast<int32_t>(
            (r * g_.dilation[0] * in_columns + s * g_.dilation[1]) * g_.stored * kernels_.item));
      }
    }
    if (offsets.size() % 2) offsets.push_back(offsets.back());  // with a weight of zero
    return offsets;
  }

  const ClipqProduct spec_;
  const bool depthwise_;
  const Kernels &kernels_;
  const std::shared_ptr<const PackedWeights> weights_;
  const std::shared_ptr<const Epilogue> epilogue_, epilogue_of_pixels_;
  const Geometry g_;
  const SumBlock sum_;
  const int threads_;
  int64_t numbers_, lanes_, each_, row_numbers_;
  std::vector<int32_t> offsets_;
};

struct DirectCompiled::Task {
  const DirectCompiled &layer;
  const Geometry &g;
  const uint8_t *src;
  void *dst;
  int64_t dst_stride;
  const uint8_t *residual;
  int64_t image, row, column, chunk, rows, columns;
  char *copies;
  int32_t *starts, *sums;

  Task(const DirectCompiled &layer, const uint8_t *src, void *dst, int64_t dst_stride,
       const uint8_t *residual, char *scratch, int64_t image, int64_t row, int64_t column,
       int64_t chunk)
      : layer(layer), g(layer.g_), src(src), dst(dst), dst_stride(dst_stride), residual(residual),
        image(image), row(row), column(column), chunk(chunk),
        rows(std::min(g.tile[0], g.rows - row)), columns(std::min(g.tile[1], g.columns - column)) {
    sums = reinterpret_cast<int32_t *>(scratch);
    copies = scratch + kStrip * layer.lanes_ * 4;
    starts = reinterpret_cast<int32_t *>(
        copies + divided_up(layer.numbers_ * layer.kernels_.item, 64) * 64);
  }

  void run() {
    const int64_t item = layer.kernels_.item;
    const char *numbers = copies;
    if (g.in_place) {
      numbers = reinterpret_cast<const char *>(src) + column * g.channels;
    } else {
      copy();
    }
    for (int64_t y = 0, i = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x, ++i) {
        starts[i] = static_cast<int32_t>(
            (y * g.stride[0] * layer.row_numbers_ + x * g.stride[1]) * g.stored * item);
      }
    }
    const auto &blocks = layer.weights_->blocks;
    const int64_t first = chunk * g.chunk;
    const int64_t last = std::min(first + g.chunk, static_cast<int64_t>(blocks.size()));
    for (int64_t b = first; b < last; ++b) {
      const Block &block = blocks[static_cast<size_t>(b)];
      for (int64_t from = 0; from < rows * columns; from += kStrip) {
        const int64_t count = std::min(kStrip, rows * columns - from);
        if (layer.depthwise_) {
          const int64_t channel = block.first - blocks[static_cast<size_t>(first)].first;
          sum_depthwise(numbers + channel * item, starts + from, count, layer.offsets_.data(),
                        static_cast<int64_t>(layer.offsets_.size()) / 2,
                        layer.weights_->numbers.data() + block.weights, sums);
        } else {
          layer.sum_(numbers + block.channel * item, starts + from, count, layer.offsets_.data(),
                     static_cast<int64_t>(layer.offsets_.size()), layer.weights_->steps,
                     block.vectors, layer.weights_->numbers.data() + block.weights,
                     layer.weights_->terms.data() + block.first, sums);
        }
        finish(block, from, count);
      }
    }
  }

  // Codes that the rectangle reads become numbers; what stands for zero lies around the image.
  void copy() const {
    const int64_t in_rows = g.reach(0, rows), in_columns = layer.row_numbers_;
    const int64_t top = row * g.stride[0] - g.padding[0];
    const int64_t left = column * g.stride[1] - g.padding[1];
    const int64_t c = layer.depthwise_ ? chunk * g.chunk * kBlock : 0;
    const int64_t stored = std::min(g.stored, g.channels - c), item = layer.kernels_.item;
    const int64_t before = std::min(std::max<int64_t>(-left, 0), in_columns);
    const int64_t real = std::max<int64_t>(
        std::min(divided_up(g.width, g.take[1]) - left, in_columns) - before, 0);
    const ClipqCodes kind(layer.spec_.src_type == kInt8, layer.spec_.src_offset);
    const int zero = item == 1 ? kind.subtrahend - layer.kernels_.sign : 0;
    const auto fill = [&](char *to, int64_t pixels) {
      std::memset(to, zero, static_cast<size_t>(pixels * g.stored * item));
    };
    for (int64_t y = 0; y < in_rows; ++y) {
      char *to = copies + y * in_columns * g.stored * item;
      const int64_t source = (top + y) * g.take[0];
      if (source < 0 || source >= g.height || real == 0) {
        fill(to, in_columns);
        continue;
      }
      const uint8_t *from = src + c + ((image * g.height + source) * g.width +
                                       (left + before) * g.take[1]) * g.channels;
      fill(to, before);
      to += before * g.stored * item;
      if (g.take[1] == 1 && stored == g.channels) {
        copy_codes(from, to, real * stored, kind);
      } else {
        for (int64_t x = 0; x < real; ++x) {
          copy_codes(from + x * g.take[1] * g.channels, to + x * g.stored * item, stored, kind);
        }
      }
      fill(to + real * g.stored * item, in_columns - before - real);
    }
  }

  void copy_codes(const uint8_t *from, char *to, int64_t count, const ClipqCodes &kind) const {
    if (layer.kernels_.item == 2) {
      clipq_widen(from, reinterpret_cast<int16_t *>(to), count, kind);
    } else if (kind.flip != layer.kernels_.sign) {
      clipq_flip(from, reinterpret_cast<uint8_t *>(to), count);
    } else {
      std::memcpy(to, from, static_cast<size_t>(count));
    }
  }

  // Sums of `count` pixels of the rectangle from `from` on become results, row by row.
  void finish(const Block &block, int64_t from, int64_t count) const {
    const int64_t joined = layer.weights_->pixels, outputs = layer.spec_.outputs;
    const int64_t lanes = joined > 1         ? outputs
                          : layer.depthwise_ ? kBlock
                                             : block.vectors * layer.kernels_.lanes;
    for (int64_t i = 0; i < count;) {
      const int64_t y = (from + i) / columns, x = (from + i) % columns;
      int64_t pixels = std::min(columns - x, count - i);
      const int64_t pixel = (image * g.rows + row + y) * g.columns + column + x;
      const uint8_t *added =
          residual == nullptr ? nullptr : residual + pixel * outputs + block.first;
      const int64_t item = layer.spec_.dst_type == kFloat ? 4 : 1;
      void *to = static_cast<char *>(dst) + (pixel * dst_stride + block.first) * item;
      if (joined > 1 && dst_stride == outputs && pixels >= joined) {
        const int64_t all = joined * outputs;
        pixels -= pixels % joined;
        clipq_finish(layer.epilogue_of_pixels_->spec, sums + i * lanes, all, added, all, to, all,
                     pixels / joined, 0, all);
      } else {
        clipq_finish(layer.epilogue_->spec, sums + i * lanes, lanes, added, outputs, to, dst_stride,
                     pixels, block.first, block.count);
      }
      i += pixels;
    }
  }
};

void DirectCompiled::run(const void *src, void *dst, int64_t dst_stride, const uint8_t *residual,
                         void *scratch) const {
  const int64_t down = divided_up(g_.rows, g_.tile[0]);
  const int64_t across = divided_up(g_.columns, g_.tile[1]);
  const int64_t tasks = g_.images * down * across * g_.chunks;
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    // Tasks that read the same weights follow each other.
    int64_t rest = task;
    const int64_t column = rest % across * g_.tile[1];
    rest /= across;
    const int64_t row = rest % down * g_.tile[0];
    rest /= down;
    const int64_t image = rest % g_.images, chunk = rest / g_.images;
    Task(*this, static_cast<const uint8_t *>(src), dst, dst_stride, residual,
         static_cast<char *>(scratch) + omp_get_thread_num() * each_, image, row, column, chunk)
        .run();
  }
}

std::unique_ptr<Compiled> Direct::compile(const Shape &src, const Shape &dst,
                                          const Shape &before, bool) {
  return std::make_unique<DirectCompiled>(
      *this, plan_direct(spec_, kernels_, static_cast<int64_t>(packed_->blocks.size()), src, dst,
                         before));
}

}  // namespace

std::unique_ptr<Layer> direct_layer(const ClipqProduct &spec, const int8_t *weights,
                                    const float *multiplier, const float *bias) {
  return std::make_unique<Direct>(spec, weights, multiplier, bias);
}

// oneDNN would leave smooth activations to a pass of their own.
bool is_faster_direct(const ClipqProduct &spec) {
  return has_wide_kernels() && spec.groups == 1 && spec.activation >= kSilu;
}

}  // namespace clipq

CLIPQ_VECTORIZED void clipq_widen(const uint8_t *codes, int16_t *numbers, int64_t count,
                                  const ClipqCodes &kind) {
  const uint8_t flip = static_cast<uint8_t>(kind.flip);
  const int16_t less = static_cast<int16_t>(kind.subtrahend);
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = static_cast<int16_t>(static_cast<int16_t>(codes[i] ^ flip) - less);
  }
}

CLIPQ_VECTORIZED void clipq_flip(const uint8_t *codes, uint8_t *flipped, int64_t count) {
  for (int64_t i = 0; i < count; ++i) flipped[i] = static_cast<uint8_t>(codes[i] ^ 128);
}
