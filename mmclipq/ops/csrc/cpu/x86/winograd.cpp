// 3x3 convolutions of stride 1 with a quarter of the products, exactly: Winograd's F(4x4, 3x3) on
// integers modulo 2^32.
//
// With B, G and A of Lavin and Gray 2016, Y = A^T [(G g G^T) * (B^T d B)] A. B is whole, and a tile of
// codes less their offset stays within 16 bits. Rows of G become whole numbers by factors, whose
// inverses times 24 are whole and go into A. So 576 Y is a sum of whole products; 32 bits of it give 26
// of Y, as 576 = 64 * 9 and 9 has an inverse modulo 2^32. Layers whose sums could need more are left to
// the direct kernels, whatever the codes.

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "direct.h"
#include "winograd.h"

namespace clipq {
namespace {

constexpr int64_t kSide = kWinogradSide, kOut = kWinogradOut, kPlaces = kSide * kSide;
constexpr int64_t kMostTiles = 28;                // of a task
constexpr int64_t kTransformedBytes = 352 << 10;  // of the tiles of a task
constexpr int64_t kMostWeights = 1 << 17;         // of a kernel's tap; they take eight times as much
constexpr int64_t kResultBytes = 20 << 10;        // of the sums that are finished together

struct Packed {
  std::vector<Block> blocks;
  std::vector<int16_t> numbers;
};

// [block][place][pair of channels][channel of the result][2].
std::shared_ptr<const Packed> pack(const ClipqProduct &spec, const int8_t *weights,
                                   const Kernels &kernels) {
  constexpr int kFactors[kSide][3] = {{6, 0, 0}, {4, 4, 4}, {4, -4, 4},
                                      {1, 2, 4}, {1, -2, 4}, {0, 0, 8}};
  const int64_t pairs = divided_up(spec.channels, 2);
  auto packed = std::make_shared<Packed>();
  for (Block block : split_blocks(spec.outputs, kernels)) {
    const int64_t lanes = block.vectors * kernels.lanes;
    block.weights = static_cast<int64_t>(packed->numbers.size());
    packed->numbers.resize(packed->numbers.size() +
                           static_cast<size_t>(kPlaces * pairs * lanes * 2));
    for (int64_t o = 0; o < block.count; ++o) {
      for (int64_t c = 0; c < spec.channels; ++c) {
        const int8_t *g = weights + ((block.first + o) * spec.channels + c) * 9;
        int32_t half[kSide][3];
        for (int i = 0; i < kSide; ++i) {
          for (int s = 0; s < 3; ++s) {
            half[i][s] = 0;
            for (int r = 0; r < 3; ++r) half[i][s] += kFactors[i][r] * g[3 * r + s];
          }
        }
        for (int i = 0; i < kPlaces; ++i) {
          int32_t u = 0;
          for (int s = 0; s < 3; ++s) u += half[i / kSide][s] * kFactors[i % kSide][s];
          const int64_t at = block.weights + ((i * pairs + c / 2) * lanes + o) * 2 + c % 2;
          packed->numbers[static_cast<size_t>(at)] = static_cast<int16_t>(u);
        }
      }
    }
    packed->blocks.push_back(block);
  }
  return packed;
}

class WinogradCompiled : public Compiled {
 public:
  WinogradCompiled(const ClipqProduct &spec, const Kernels &kernels,
                   std::shared_ptr<const Packed> packed, std::shared_ptr<const Epilogue> epilogue,
                   const Shape &src, const Shape &dst, const Shape &before)
      : spec_(spec), kernels_(kernels), packed_(std::move(packed)), epilogue_(std::move(epilogue)),
        before_{before[0], before[1]}, threads_(omp_get_max_threads()), images_(src[0]), height_(src[2]), width_(src[3]),
        rows_(dst[2]), columns_(dst[3]), down_(divided_up(rows_, kOut)),
        across_(divided_up(columns_, kOut)), stored_(divided_up(spec.channels, 16) * 16),
        blocks_(static_cast<int64_t>(packed_->blocks.size())),
        lanes_(kernels.lanes * kernels.vectors) {
    const int64_t all = images_ * down_ * across_, wanted = threads_ == 1 ? 1 : 4 * threads_;
    tiles_ = tiles_of_tasks(all);
    parts_ = divided_up(all, tiles_);
    chunks_ = std::min(divided_up(wanted, parts_), divided_up(blocks_, 4));
    chunk_ = divided_up(blocks_, chunks_);
    chunks_ = divided_up(blocks_, chunk_);
    each_ = divided_up((kPlaces * tiles_ * stored_ * 2) + kPlaces * tiles_ * lanes_ * 4 +
                           tiles_ * kOut * kOut * lanes_ * 4 + 2 * stored_ + 64, 4096) * 4096;
    scratchpad = each_ * threads_;
  }

  void run(const void *src, void *dst, int64_t dst_stride, const uint8_t *residual,
           void *scratch) const override {
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (parts_ * chunks_ > 1)
    for (int64_t task = 0; task < parts_ * chunks_; ++task) {
      char *memory = static_cast<char *>(scratch) + omp_get_thread_num() * each_;
      auto *transformed = reinterpret_cast<int16_t *>(memory);
      auto *sums = reinterpret_cast<int32_t *>(transformed + kPlaces * tiles_ * stored_);
      int32_t *results = sums + kPlaces * tiles_ * lanes_;
      auto *zeros = reinterpret_cast<uint8_t *>(results + tiles_ * kOut * kOut * lanes_);
      const int64_t first = task % parts_ * tiles_, chunk = task / parts_;
      const int64_t count = std::min(tiles_, images_ * down_ * across_ - first);
      transform(static_cast<const uint8_t *>(src), first, count, transformed, zeros);
      const int64_t last = std::min((chunk + 1) * chunk_, blocks_);
      for (int64_t i = chunk * chunk_; i < last; ++i) {
        const Block &block = packed_->blocks[static_cast<size_t>(i)];
        multiply(transformed, count, block, sums);
        restore(sums, first, count, block, results, dst, dst_stride, residual);
      }
    }
  }

 private:
  // Tiles of a task with which the threads are done first.
  int64_t tiles_of_tasks(int64_t all) const {
    const int64_t most =
        std::max(std::min(kTransformedBytes / (kPlaces * stored_ * 2), kMostTiles), kernels_.pixels);
    double least = 0;
    int64_t best = 0;
    for (int64_t tiles = std::min(most, all); tiles > 0; --tiles) {
      const int64_t turns = divided_up(divided_up(all, tiles), threads_);
      const double time = static_cast<double>(turns) * time_of_task(tiles);
      if (best == 0 || time < least) least = time, best = tiles;
    }
    return best;
  }

  // In that of a tile among as many as registers hold. Fewer at a time wait for loads, and a task reads
  // all weights once. As measured on a Zen 4.
  double time_of_task(int64_t tiles) const {
    const int64_t half = kernels_.pixels / 2, rest = tiles % kernels_.pixels;
    const int64_t halves = rest >= half, ones = rest - halves * half;
    return static_cast<double>(tiles - rest) + 1.1 * static_cast<double>(halves * half) +
           1.6 * static_cast<double>(ones) + 4;
  }

  void transform(const uint8_t *src, int64_t first, int64_t count, int16_t *to,
                 uint8_t *zeros) const {
    const ClipqCodes kind(spec_.src_type == kInt8, spec_.src_offset);
    const int64_t channels = spec_.channels, whole = channels / 16 * 16, rest = channels - whole;
    std::memset(zeros, spec_.src_offset, static_cast<size_t>(stored_));
    for (int64_t t = 0; t < count; ++t) {
      const int64_t image = (first + t) / (down_ * across_), tile = (first + t) % (down_ * across_);
      const int64_t top = tile / across_ * kOut - before_[0];
      const int64_t left = tile % across_ * kOut - before_[1];
      const uint8_t *pixels[kPlaces];
      for (int64_t i = 0; i < kPlaces; ++i) {
        const int64_t y = top + i / kSide, x = left + i % kSide;
        const bool inside = y >= 0 && y < height_ && x >= 0 && x < width_;
        pixels[i] = inside ? src + ((image * height_ + y) * width_ + x) * channels : zeros;
      }
      int16_t *place = to + t * stored_;
      transform_tile(pixels, whole, kind, place, tiles_ * stored_);
      if (rest == 0) continue;
      uint8_t last[kPlaces][16] = {};  // reading on could leave the source's memory
      for (int64_t i = 0; i < kPlaces; ++i) {
        std::memcpy(last[i], pixels[i] + whole, static_cast<size_t>(rest));
        pixels[i] = last[i];
      }
      transform_tile(pixels, 16, kind, place + whole, tiles_ * stored_);
    }
  }

  void multiply(const int16_t *transformed, int64_t count, const Block &block,
                int32_t *sums) const {
    static const int32_t zeros[64] = {};
    const int64_t pairs = divided_up(spec_.channels, 2), lanes = block.vectors * kernels_.lanes;
    int32_t starts[kMostTiles];
    for (int64_t t = 0; t < count; ++t) starts[t] = static_cast<int32_t>(t * stored_ * 2);
    const int32_t offset = 0;
    for (int64_t place = 0; place < kPlaces; ++place) {
      const int16_t *weights = packed_->numbers.data() + block.weights + place * pairs * lanes * 2;
      kernels_.sum(reinterpret_cast<const char *>(transformed + place * tiles_ * stored_), starts,
                   count, &offset, 1, pairs, block.vectors,
                   reinterpret_cast<const char *>(weights), zeros, sums + place * tiles_ * lanes);
    }
  }

  // Tiles side by side are finished together, one row of pixels after another.
  void restore(const int32_t *sums, int64_t first, int64_t count, const Block &block,
               int32_t *results, void *dst, int64_t dst_stride, const uint8_t *residual) const {
    const int64_t item = spec_.dst_type == kFloat ? 4 : 1, lanes = block.vectors * kernels_.lanes;
    const int64_t channel = block.first;
    const int64_t together = std::max<int64_t>(kResultBytes / (kOut * kOut * lanes * 4), 1);
    for (int64_t from = 0; from < count;) {
      const int64_t line = (first + from) / across_, column = (first + from) % across_;
      const int64_t many = std::min({across_ - column, count - from, together});
      const int64_t row_stride = many * kOut * lanes;
      for (int64_t t = 0; t < many; ++t) {
        restore_tile(sums + (from + t) * lanes, tiles_ * lanes, lanes, results + t * kOut * lanes,
                     row_stride, lanes);
      }
      const int64_t image = line / down_, row = line % down_ * kOut, x = column * kOut;
      const int64_t pixels = std::min(many * kOut, columns_ - x);
      for (int64_t y = 0; y < std::min(kOut, rows_ - row); ++y) {
        const int64_t pixel = (image * rows_ + row + y) * columns_ + x;
        clipq_finish(epilogue_->spec, results + y * row_stride, lanes,
                     residual == nullptr ? nullptr : residual + pixel * spec_.outputs + channel,
                     spec_.outputs, static_cast<char *>(dst) + (pixel * dst_stride + channel) * item,
                     dst_stride, pixels, channel, block.count);
      }
      from += many;
    }
  }

  const ClipqProduct spec_;
  const Kernels &kernels_;
  const std::shared_ptr<const Packed> packed_;
  const std::shared_ptr<const Epilogue> epilogue_;
  const int64_t before_[2];
  const int threads_;
  const int64_t images_, height_, width_, rows_, columns_, down_, across_, stored_, blocks_, lanes_;
  int64_t tiles_, parts_, chunk_, chunks_, each_;
};

class Winograd : public Layer {
 public:
  Winograd(const ClipqProduct &spec, const int8_t *weights, const float *multiplier,
           const float *bias)
      : spec_(spec), kernels_(has_wide_kernels() ? wide_pair_kernels() : pair_kernels()),
        packed_(pack(spec, weights, kernels_)),
        epilogue_(std::make_shared<Epilogue>(spec, multiplier, bias)) {}

  std::unique_ptr<Compiled> compile(const Shape &src, const Shape &dst, const Shape &before,
                                    bool) override {
    return std::make_unique<WinogradCompiled>(spec_, kernels_, packed_, epilogue_, src, dst, before);
  }

 private:
  const ClipqProduct spec_;
  const Kernels &kernels_;
  const std::shared_ptr<const Packed> packed_;
  const std::shared_ptr<const Epilogue> epilogue_;
};

}  // namespace

bool winograd_fits(const ClipqProduct &spec, const int8_t *weights) {
  if (spec.linear || spec.groups != 1 || spec.channels < 16 || spec.outputs < 16) return false;
  for (int axis = 0; axis < 2; ++axis) {
    if (spec.kernel[axis] != 3 || spec.step[axis] != 1 || spec.dilation[axis] != 1) return false;
  }
  if (spec.channels * spec.outputs > kMostWeights) return false;
  const int64_t largest =
      spec.src_type == kInt8 ? 128 : std::max(255 - spec.src_offset, spec.src_offset);
  const int64_t depth = spec.channels * 9;
  for (int64_t output = 0; output < spec.outputs; ++output) {
    int64_t sum = 0;
    for (int64_t i = 0; i < depth; ++i) sum += std::abs(weights[output * depth + i]);
    if (sum * largest >= 1 << 25) return false;
  }
  return true;
}

bool is_faster_by_winograd(const ClipqProduct &spec, const Shape &dst, bool than_onednn) {
  if (!has_wide_kernels()) return !than_onednn;
  const int64_t least = than_onednn ? 64 : 32;
  if (std::min(spec.channels, spec.outputs) < least) return false;
  // Tiles at the edges reach beyond the result.
  const int64_t tiles = divided_up(dst[2], kOut) * divided_up(dst[3], kOut);
  return 5 * dst[2] * dst[3] >= 4 * tiles * kOut * kOut;
}

std::unique_ptr<Layer> winograd_layer(const ClipqProduct &spec, const int8_t *weights,
                                      const float *multiplier, const float *bias) {
  return std::make_unique<Winograd>(spec, weights, multiplier, bias);
}

}  // namespace clipq
