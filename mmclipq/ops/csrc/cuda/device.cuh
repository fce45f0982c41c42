// What kernels are written with: single instructions and launches. Compiled with CLIPQ_EMULATION by
// an ordinary C++ compiler, the same kernels run on the CPU, see emulation.h.
#pragma once

#include <cstdint>

#ifdef CLIPQ_EMULATION
#include "emulation.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define CLIPQ_DEVICE __device__ __forceinline__
#define CLIPQ_CALLED __device__ __noinline__
#define CLIPQ_HOST_DEVICE __host__ __device__ __forceinline__
#define CLIPQ_UNROLL _Pragma("unroll")
#define CLIPQ_ROLLED _Pragma("unroll 1")

using ClipqStream = cudaStream_t;

namespace device {

CLIPQ_DEVICE int thread() { return threadIdx.x; }
CLIPQ_DEVICE int block_x() { return blockIdx.x; }
CLIPQ_DEVICE int block_y() { return blockIdx.y; }
CLIPQ_DEVICE int block_z() { return blockIdx.z; }
CLIPQ_DEVICE void synchronize() { __syncthreads(); }

// Copies of 16 or 4 bytes to shared memory that arrive by `wait`, of zeros unless `inside`. Before
// sm_80 they arrive at once.
CLIPQ_DEVICE void copy16(void *shared, const void *global, bool inside) {
#if __CUDA_ARCH__ >= 800
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
#else
  *static_cast<int4 *>(shared) =
      inside ? *static_cast<const int4 *>(global) : make_int4(0, 0, 0, 0);
#endif
}

CLIPQ_DEVICE void copy4(void *shared, const void *global, bool inside) {
#if __CUDA_ARCH__ >= 800
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
#else
  *static_cast<int *>(shared) = inside ? *static_cast<const int *>(global) : 0;
#endif
}

// Ends a group of copies.
CLIPQ_DEVICE void commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of this thread but the newest `kPending`.
template <int kPending>
CLIPQ_DEVICE void wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit items; lane 8i + j names row j of matrix i.
CLIPQ_DEVICE void load_matrices(uint32_t (&r)[4], const void *row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

#if __CUDA_ARCH__ >= 800
#define CLIPQ_MMA(TYPE)                                                                          \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." TYPE                                     \
               ".s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"                      \
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
// sm_75 has the product of 8x8x16 alone: four of them with the same fragments.
#define CLIPQ_MMA_QUARTER(TYPE, X, Y, A, B)                                                      \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1},{%2},{%3},{%0,%1};" \
               : "+r"(c[X]), "+r"(c[Y])                                                          \
               : "r"(A), "r"(B))
#define CLIPQ_MMA(TYPE)                  \
  CLIPQ_MMA_QUARTER(TYPE, 0, 1, a[0], b0); \
  CLIPQ_MMA_QUARTER(TYPE, 2, 3, a[1], b0); \
  CLIPQ_MMA_QUARTER(TYPE, 0, 1, a[2], b1); \
  CLIPQ_MMA_QUARTER(TYPE, 2, 3, a[3], b1)
#endif

// c += a * b on tensor cores: a 16x32 of int8 or uint8, b 32x8 of int8, c 16x8 of int32.
template <bool kSigned>
CLIPQ_DEVICE void multiply_add(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if (kSigned) {
    CLIPQ_MMA("s8");
  } else {
    CLIPQ_MMA("u8");
  }
}

// Float operations that are rounded by themselves, never contracted to a fused one.
CLIPQ_DEVICE float from_int(int v) { return __int2float_rn(v); }
CLIPQ_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
CLIPQ_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
CLIPQ_DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
CLIPQ_DEVICE float div(float a, float b) { return __fdiv_rn(a, b); }
CLIPQ_DEVICE float square_root(float a) { return __fsqrt_rn(a); }
CLIPQ_DEVICE float to_float(double v) { return __double2float_rn(v); }
CLIPQ_DEVICE double from_long(int64_t v) { return __ll2double_rn(v); }
CLIPQ_DEVICE double mul(double a, double b) { return __dmul_rn(a, b); }
CLIPQ_DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
CLIPQ_DEVICE double sub(double a, double b) { return __dsub_rn(a, b); }
CLIPQ_DEVICE double div(double a, double b) { return __ddiv_rn(a, b); }
CLIPQ_DEVICE double square_root(double a) { return __dsqrt_rn(a); }

CLIPQ_DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
CLIPQ_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
CLIPQ_DEVICE int rounded(float v) { return __float2int_rn(v); }  // half to even, saturated

// Largest of each of four codes.
CLIPQ_DEVICE uint32_t largest4(uint32_t a, uint32_t b, bool is_signed) {
  return is_signed ? __vmaxs4(a, b) : __vmaxu4(a, b);
}

// Integers in global memory that several blocks share.
CLIPQ_DEVICE void add_to(int *place, int v) { atomicAdd(place, v); }
CLIPQ_DEVICE int take_ticket(int *counter) { return atomicAdd(counter, 1); }
CLIPQ_DEVICE int read_shared(const int *place) { return __ldcg(place); }
CLIPQ_DEVICE void fence() { __threadfence(); }

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <typename Body>
__global__ void __launch_bounds__(256) items_kernel(const Body body, const int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    body(i);
  }
}

// Calls body(0), ..., body(count - 1) in parallel.
template <typename Body>
void launch_items(const Body &body, int64_t count, ClipqStream stream) {
  if (count <= 0) return;
  const int64_t blocks = (count + 255) / 256;
  items_kernel<<<static_cast<unsigned>(blocks < (1 << 20) ? blocks : 1 << 20), 256, 0, stream>>>(
      body, count);
  check(cudaGetLastError());
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    blocks_kernel(const typename Kernel::Args args) {
  extern __shared__ __align__(128) uint8_t shared[];
  Kernel::run(args, shared);
}

// Runs a kernel whose blocks of `Kernel::kThreads` threads share `Kernel::kShared` bytes.
template <typename Kernel>
void launch_blocks(const typename Kernel::Args &args, int x, int y, int z, ClipqStream stream) {
  // More than 48 KiB must be asked for, on each device; this costs less than asking which one it is.
  check(cudaFuncSetAttribute(blocks_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             Kernel::kShared));
  blocks_kernel<Kernel><<<dim3(x, y, z), Kernel::kThreads, Kernel::kShared, stream>>>(args);
  check(cudaGetLastError());
}

}  // namespace device

#endif  // CLIPQ_EMULATION

// The code of a value in steps: rounded half to even, the offset added, saturated.
CLIPQ_DEVICE uint32_t to_code(float v, bool is_signed, int32_t offset) {
  const int low = (is_signed ? -128 : 0) - offset, high = low + 255;
  int steps = device::rounded(v);
  steps = steps > low ? steps : low;
  steps = steps < high ? steps : high;
  return static_cast<uint32_t>(steps + offset) & 255u;
}
