// Sixteen codes or values at a time: with one access of memory where everything is aligned.
#pragma once

#include "../common/steps.h"
#include "device.cuh"

constexpr int kChunk = 16;

struct alignas(16) Chunk {
  uint32_t words[4];

  CLIPQ_DEVICE uint8_t get(int i) const { return static_cast<uint8_t>(words[i >> 2] >> (i % 4 * 8)); }
  CLIPQ_DEVICE void put(int i, uint32_t code) {
    const int shift = i % 4 * 8;
    words[i >> 2] = (words[i >> 2] & ~(255u << shift)) | code << shift;
  }
};

CLIPQ_DEVICE Chunk load_chunk(const uint8_t *from, int count, bool aligned) {
  if (aligned) return *reinterpret_cast<const Chunk *>(from);
  Chunk chunk{};
  CLIPQ_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    if (i < count) chunk.put(i, from[i]);
  }
  return chunk;
}

CLIPQ_DEVICE void store_chunk(uint8_t *to, const Chunk &chunk, int count, bool aligned) {
  if (aligned) {
    *reinterpret_cast<Chunk *>(to) = chunk;
    return;
  }
  CLIPQ_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    if (i < count) to[i] = chunk.get(i);
  }
}

CLIPQ_DEVICE int code_steps(uint8_t code, int32_t is_signed, int32_t offset) {
  return (is_signed ? static_cast<int8_t>(code) : code) - offset;
}

CLIPQ_DEVICE float code_value(uint8_t code, int32_t is_signed, int32_t offset) {
  return device::from_int(code_steps(code, is_signed, offset));
}

inline bool is_aligned(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether every chunk is whole and aligned, of tensors whose rows start `stride` bytes apart.
template <typename... Pointers>
bool whole_chunks(int64_t channels, int64_t stride, Pointers... pointers) {
  return channels % kChunk == 0 && stride % kChunk == 0 && (is_aligned(pointers) && ...);
}

// Cuts rows into chunks; rows without gaps are one.
struct Chunks {
  int64_t length, stride, per_row, count;

  explicit Chunks(const ClipqRows &rows) {
    const bool dense = rows.stride == rows.channels;
    length = dense ? rows.rows * rows.channels : rows.channels;
    stride = dense ? length : rows.stride;
    per_row = (length + kChunk - 1) / kChunk;
    count = (dense ? 1 : rows.rows) * per_row;
  }

  // The first item of chunk `i` in the source and in the result, and its items.
  CLIPQ_DEVICE int find(int64_t i, int64_t &from, int64_t &to) const {
    const int64_t row = i / per_row, first = (i - row * per_row) * kChunk;
    from = row * length + first;
    to = row * stride + first;
    return static_cast<int>(length - first < kChunk ? length - first : kChunk);
  }
};

// Channels of one pixel of images (images, rows, columns, channels) that a thread makes.
struct PixelChunk {
  int64_t image, row, column, pixel, first;
  int count;

  // `item` counts the chunks of all pixels.
  CLIPQ_DEVICE PixelChunk(int64_t item, int64_t rows, int64_t columns, int64_t channels) {
    const int64_t per_pixel = (channels + kChunk - 1) / kChunk;
    pixel = item / per_pixel;
    first = (item - pixel * per_pixel) * kChunk;
    const int64_t line = pixel / columns;
    column = pixel - line * columns;
    image = line / rows;
    row = line - image * rows;
    count = static_cast<int>(channels - first < kChunk ? channels - first : kChunk);
  }
};

inline int64_t pixel_chunks(int64_t pixels, int64_t channels) {
  return pixels * ((channels + kChunk - 1) / kChunk);
}
