// Kernels of the direct layers and their weights.
#pragma once

#include "product.h"

namespace clipq {

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kBlock = 16;  // channels of a block of a depthwise layer; their sums lie in rows

// Channels of the result that are summed together.
struct Block {
  int64_t first, count;  // of the result
  int64_t channel;       // first channel of the source that they read
  int64_t vectors;       // of the kernels' lanes
  int64_t weights;       // bytes before theirs
};

// Weights in the order in which kernels read them.
struct PackedWeights {
  std::vector<char> numbers;
  std::vector<Block> blocks;
  std::vector<int32_t> terms;  // what the sum of each channel starts with, and some zeros
  int64_t steps = 0;           // of one run, the numbers that lie without gaps in the source
  bool joined = false;         // whether the taps of a row of the kernel are one run
  int64_t pixels = 1;          // whose channels fill the only block together
};

// Sums of `count` pixels, which start so many bytes behind `numbers`; a run starts so many further.
using SumBlock = void (*)(const char *numbers, const int32_t *starts, int64_t count,
                          const int32_t *offsets, int64_t runs, int64_t steps, int64_t vectors,
                          const char *weights, const int32_t *terms, int32_t *sums);

// How a kind of processor multiplies and adds: what it sees as numbers, and how many at once.
struct Kernels {
  int64_t item;      // bytes of a number: codes themselves, or codes less their offset
  int64_t together;  // numbers of a lane that one step multiplies and adds
  int64_t pixels;    // of a tile in registers
  int64_t lanes;     // channels of a vector
  int64_t vectors;   // most of a block
  SumBlock sum;
  int32_t sign = 0;  // 128 where codes themselves are multiplied as int8, not as uint8
  SumBlock sum_signed = nullptr;  // where sign is 0, of codes of int8 that lie as they are
};

// What kernels multiply: quadruples of codes, of int8 less -128, or pairs of 16-bit numbers.
enum Numbers { kQuads, kSignedQuads, kPairs };

// Pairs of 16-bit numbers, for AVX2 and any Arm, and for AVX-512's VNNI.
const Kernels &pair_kernels();
const Kernels &wide_pair_kernels();
// Quadruples of codes, for AVX-512's VNNI and Arm's dot products.
const Kernels &quad_kernels();
// Whether the processor is used with those; on x86 also without AMX.
bool has_wide_kernels();

// Few channels leave lanes empty: those of so many pixels fill three vectors, or 1 if they do not.
int64_t pixels_together(const ClipqProduct &spec, const Kernels &kernels);
// Quadruples of codes by weights that are repeated for each of the pixels, whose sums follow one another.
SumBlock sum_of_pixels(int64_t together);

// Channels of each block: as few blocks as can be, alike.
std::vector<Block> split_blocks(int64_t outputs, const Kernels &kernels);
std::shared_ptr<const PackedWeights> pack_blocks(const ClipqProduct &spec, const int8_t *weights,
                                                 const Kernels &kernels);
std::shared_ptr<const PackedWeights> pack_depthwise(const ClipqProduct &spec,
                                                    const int8_t *weights);

// The same of 16 channels of 16-bit numbers that are summed each by itself; offsets of two taps make
// a pair.
void sum_depthwise(const char *numbers, const int32_t *starts, int64_t count,
                   const int32_t *offsets, int64_t pairs, const char *weights, int32_t *sums);

}  // namespace clipq

// Codes less their offset, as 16-bit numbers.
void clipq_widen(const uint8_t *codes, int16_t *numbers, int64_t count, const ClipqCodes &kind);
// Codes of int8 as those of uint8 that are 128 larger.
void clipq_flip(const uint8_t *codes, uint8_t *flipped, int64_t count);
