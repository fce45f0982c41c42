// Kernels of the direct layers and their weights.
#pragma once

#include "product.h"

namespace clipq {

constexpr int64_t kPixels = 6;   // of one tile in registers
constexpr int64_t kBlock = 16;   // channels of a block; sums lie in rows of so many

// Channels of the result that are summed together.
struct Block {
  int64_t first, count;  // of the result
  int64_t channel;       // first channel of the source that they read
  int64_t vectors;       // of 8 channels
  int64_t weights;       // where their weights start
};

// 16-bit weights in the order in which kernels read them.
struct PackedWeights {
  std::vector<int16_t> numbers;
  std::vector<Block> blocks;
  int64_t pairs = 0;    // of one run, the numbers that lie without gaps in the source
  bool joined = false;  // whether the taps of a row of the kernel are one run
};

// Convolutions that need a quarter of the products, see winograd.cpp, and whether a layer is one.
std::unique_ptr<Layer> winograd_layer(const ClipqProduct &spec, const int8_t *weights,
                                      const float *multiplier, const float *bias);
bool winograd_fits(const ClipqProduct &spec, const int8_t *weights);

std::shared_ptr<const PackedWeights> pack_blocks(const ClipqProduct &spec, const int8_t *weights);
std::shared_ptr<const PackedWeights> pack_depthwise(const ClipqProduct &spec,
                                                    const int8_t *weights);

// Sums of `count` pixels, which start at numbers + starts[i]: a run starts at each offset from there.
void sum_block(const int16_t *numbers, const int32_t *starts, int64_t count,
               const int32_t *offsets, int64_t runs, int64_t pairs, int64_t vectors,
               const int16_t *weights, int32_t *sums);

// The same of 16 channels that are summed each by itself; offsets of two taps make a pair.
void sum_depthwise(const int16_t *numbers, const int32_t *starts, int64_t count,
                   const int32_t *offsets, int64_t pairs, const int16_t *weights, int32_t *sums);

}  // namespace clipq

// Codes less their offset, as 16-bit numbers.
void clipq_widen(const uint8_t *codes, int16_t *numbers, int64_t count, const ClipqCodes &kind);
