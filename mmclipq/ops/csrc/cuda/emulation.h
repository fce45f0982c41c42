// The instructions of device.cuh on a CPU, so that the kernels' indices, fragments and order can be
// tested without a GPU. Every thread of a block is a fiber; a block-wide or warp-wide operation
// switches between them. Copies to shared memory arrive at once or as late as the kernel allows, and
// threads take turns forwards or backwards: both orders must give the same results.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <type_traits>

#define CLIPQ_DEVICE inline
#define CLIPQ_CALLED inline
#define CLIPQ_HOST_DEVICE inline
#define CLIPQ_UNROLL
#define CLIPQ_ROLLED

using ClipqStream = void *;

namespace device {

constexpr int kMaxThreads = 256;

extern int current_thread, current_block[3];
extern uint32_t lanes[kMaxThreads][16];  // what each thread shows the others of its warp

void run_block(int threads, const std::function<void()> &body);
void synchronize();
void synchronize_warp();
void copy_later(void *shared, const void *global, int bytes, bool inside);
void commit();
void wait_for_copies(int pending);

inline int thread() { return current_thread; }
inline int block_x() { return current_block[0]; }
inline int block_y() { return current_block[1]; }
inline int block_z() { return current_block[2]; }

// The addresses must be as aligned as the hardware wants them.
inline void copy16(void *shared, const void *global, bool inside) {
  copy_later(shared, global, 16, inside);
}
inline void copy4(void *shared, const void *global, bool inside) {
  copy_later(shared, global, 4, inside);
}
template <int kPending>
void wait() {
  wait_for_copies(kPending);
}

inline void load_matrices(uint32_t (&r)[4], const void *row) {
  const int lane = thread() & 31, warp = thread() & ~31;
  std::memcpy(lanes[thread()], &row, sizeof row);
  synchronize_warp();
  for (int i = 0; i < 4; ++i) {
    const uint8_t *from;
    std::memcpy(&from, lanes[warp + 8 * i + lane / 4], sizeof from);
    std::memcpy(&r[i], from + (lane & 3) * 4, 4);
  }
  synchronize_warp();
}

template <bool kSigned>
void multiply_add(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using Code = std::conditional_t<kSigned, int8_t, uint8_t>;
  const int lane = thread() & 31, warp = thread() & ~31, group = lane >> 2, quarter = lane & 3;
  std::memcpy(lanes[thread()], a, 16);
  lanes[thread()][4] = b0;
  lanes[thread()][5] = b1;
  synchronize_warp();
  // Rows of a and columns of b: 32 bytes of depth, four in each word of four lanes, twice.
  Code rows[2][32];
  int8_t columns[2][32];
  for (int i = 0; i < 2; ++i) {
    for (int part = 0; part < 8; ++part) {
      const uint32_t(*from)[16] = &lanes[warp + (part & 3)];
      std::memcpy(&rows[i][4 * part], &from[group * 4][i + (part >> 2) * 2], 4);
      std::memcpy(&columns[i][4 * part], &from[(quarter * 2 + i) * 4][4 + (part >> 2)], 4);
    }
  }
  for (int j = 0; j < 4; ++j) {
    int sum = 0;
    for (int k = 0; k < 32; ++k) sum += rows[j >> 1][k] * columns[j & 1][k];
    c[j] += sum;
  }
  synchronize_warp();
}

// To be compiled without contraction to fused multiply-adds.
inline float from_int(int v) { return static_cast<float>(v); }
inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float sub(float a, float b) { return a - b; }
inline float div(float a, float b) { return a / b; }
inline float square_root(float a) { return std::sqrt(a); }
inline float to_float(double v) { return static_cast<float>(v); }
inline double from_long(int64_t v) { return static_cast<double>(v); }
inline double mul(double a, double b) { return a * b; }
inline double add(double a, double b) { return a + b; }
inline double sub(double a, double b) { return a - b; }
inline double div(double a, double b) { return a / b; }
inline double square_root(double a) { return std::sqrt(a); }

inline uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline float as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline int rounded(float v) {
  return static_cast<int>(std::nearbyint(std::min(std::max(v, -2147483648.0f), 2147483520.0f)));
}

inline uint32_t largest4(uint32_t a, uint32_t b, bool is_signed) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const uint8_t x = a >> shift, y = b >> shift;
    const bool less = is_signed ? static_cast<int8_t>(x) < static_cast<int8_t>(y) : x < y;
    result |= static_cast<uint32_t>(less ? y : x) << shift;
  }
  return result;
}

inline void add_to(int *place, int v) { *place += v; }
inline int take_ticket(int *counter) { return (*counter)++; }
inline int read_shared(const int *place) { return *place; }
inline void fence() {}

template <typename Body>
void launch_items(const Body &body, int64_t count, ClipqStream) {
  for (int64_t i = 0; i < count; ++i) body(i);
}

// Shared memory of a block, filled with rubbish.
uint8_t *fresh_shared(int bytes);

template <typename Kernel>
void launch_blocks(const typename Kernel::Args &args, int x, int y, int z, ClipqStream) {
  for (current_block[2] = 0; current_block[2] < z; ++current_block[2]) {
    for (current_block[1] = 0; current_block[1] < y; ++current_block[1]) {
      for (current_block[0] = 0; current_block[0] < x; ++current_block[0]) {
        uint8_t *shared = fresh_shared(Kernel::kShared);
        run_block(Kernel::kThreads, [&] { Kernel::run(args, shared); });
      }
    }
  }
}

}  // namespace device
