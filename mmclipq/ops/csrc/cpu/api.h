// What the sources share: the mark of the functions that Python calls, and how the steps of a
// program name their tensors.
#pragma once

#include <cstdint>

#define CLIPQ_API extern "C" __attribute__((visibility("default")))

// One clone for each generation of vector units; the loader takes the best.
#define CLIPQ_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#define CLIPQ_INLINE inline __attribute__((always_inline))

// A program runs on several threads at once and each run brings its own buffers, so a step names
// its tensors by the number of the buffer and the bytes before them. A negative number is none.
struct ClipqPlace {
  int64_t buffer, offset;
};

class ClipqBuffers {
 public:
  explicit ClipqBuffers(void *const *buffers) : buffers_(buffers) {}

  template <typename T>
  T *at(const ClipqPlace &place) const {
    if (place.buffer < 0) return nullptr;
    return reinterpret_cast<T *>(static_cast<char *>(buffers_[place.buffer]) + place.offset);
  }

 private:
  void *const *buffers_;
};

// How a result lies: `rows` runs of `channels` items, the first items `stride` items apart, so that
// it may be a part of the channels of a larger tensor.
struct ClipqRows {
  int64_t rows, channels, stride;
};

struct ClipqProductStep;
struct ClipqSum;
struct ClipqQuantize;
struct ClipqDequantize;
struct ClipqCopy;
struct ClipqMaxPool;
struct ClipqUpsample;
struct ClipqFlatten;
struct ClipqRoIAlign;

void clipq_step(const ClipqProductStep &, const ClipqBuffers &);
void clipq_step(const ClipqSum &, const ClipqBuffers &);
void clipq_step(const ClipqQuantize &, const ClipqBuffers &);
void clipq_step(const ClipqDequantize &, const ClipqBuffers &);
void clipq_step(const ClipqCopy &, const ClipqBuffers &);
void clipq_step(const ClipqMaxPool &, const ClipqBuffers &);
void clipq_step(const ClipqUpsample &, const ClipqBuffers &);
void clipq_step(const ClipqFlatten &, const ClipqBuffers &);
void clipq_step(const ClipqRoIAlign &, const ClipqBuffers &);
