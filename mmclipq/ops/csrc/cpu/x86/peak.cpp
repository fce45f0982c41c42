// The processor's largest speed in int8: multiply-add instructions on registers, nothing loaded.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#ifdef CLIPQ_ONEDNN
#include <dnnl.hpp>
#endif

#include "api.h"

namespace {

// Operations of one round, two for each product and its addition.
constexpr int64_t kTileOperations = 4LL * 16 * 16 * 64 * 2;
constexpr int64_t kWideOperations = 12LL * 64 * 2;
constexpr int64_t kNarrowOperations = 12LL * 32 * 2;
constexpr int64_t kPairOperations = 12LL * 16 * 2;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile,amx-int8"))) void run_tiles(int64_t rounds) {
  static const TileConfig config;
  asm volatile("ldtilecfg %0" : : "m"(config));  // GCC 12's intrinsic tells it of 8 bytes only
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
}

// Twelve sums, because one instruction waits several cycles for its own last result.
#define CLIPQ_TWELVE(OP) \
  OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11)

__attribute__((target("avx512f,avx512vnni"))) void run_wide(int64_t rounds) {
  __m512i sums[12] = {}, x = {};
  for (int64_t i = 0; i < rounds; ++i) {
#define CLIPQ_STEP(n) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sums[n]) : "v"(x));
    CLIPQ_TWELVE(CLIPQ_STEP)
#undef CLIPQ_STEP
  }
}

__attribute__((target("avx2,avxvnni"))) void run_narrow(int64_t rounds) {
  __m256i sums[12] = {}, x = {};
  for (int64_t i = 0; i < rounds; ++i) {
#define CLIPQ_STEP(n) asm volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(sums[n]) : "x"(x));
    CLIPQ_TWELVE(CLIPQ_STEP)
#undef CLIPQ_STEP
  }
}

// Without VNNI, pairs of 16-bit numbers.
__attribute__((target("avx2"))) void run_pairs(int64_t rounds) {
  __m256i sums[12] = {}, x = {};
  for (int64_t i = 0; i < rounds; ++i) {
#define CLIPQ_STEP(n)                                       \
  {                                                         \
    __m256i product;                                        \
    asm volatile("vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0" \
                 : "+x"(sums[n]), "=&x"(product)            \
                 : "x"(x));                                 \
  }
    CLIPQ_TWELVE(CLIPQ_STEP)
#undef CLIPQ_STEP
  }
}

using Run = void (*)(int64_t);

}  // namespace

// Runs so many rounds on each thread with the instructions that layers use here; returns the
// operations done, in all. The function's time tells the speed.
CLIPQ_API int64_t clipq_peak(int64_t rounds) {
  Run run = run_pairs;
  int64_t operations = kPairOperations;
#ifdef CLIPQ_ONEDNN
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_amx:
    case dnnl::cpu_isa::avx512_core_amx_fp16:
      // The kernel wants to be asked before a process uses tiles (ARCH_REQ_XCOMP_PERM, tile data).
      syscall(SYS_arch_prctl, 0x1023, 18);
      run = run_tiles;
      operations = kTileOperations;
      break;
    case dnnl::cpu_isa::avx512_core_vnni:
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_fp16:
      run = run_wide;
      operations = kWideOperations;
      break;
    case dnnl::cpu_isa::avx2_vnni:
    case dnnl::cpu_isa::avx2_vnni_2:
      run = run_narrow;
      operations = kNarrowOperations;
      break;
    default: break;
  }
#endif
  int64_t total = 0;
#pragma omp parallel reduction(+ : total)
  {
    run(rounds);
    total += rounds * operations;
  }
  return total;
}
