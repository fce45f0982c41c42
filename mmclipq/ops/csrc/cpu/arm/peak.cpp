// The processor's largest speed in int8: multiply-add instructions on registers, nothing loaded.

#include <arm_neon.h>

#include "api.h"
#include "codes.h"

namespace {

constexpr int kSums = 12;  // because one instruction waits several cycles for its own last result

__attribute__((target("arch=armv8.2-a+dotprod"))) void run_quads(int64_t rounds) {
  int32x4_t sums[kSums] = {};
  const int8x16_t x = {};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int n = 0; n < kSums; ++n) {
      asm volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(sums[n]) : "w"(x));
    }
  }
}

// Without dot products, 16-bit numbers.
void run_pairs(int64_t rounds) {
  int32x4_t sums[kSums] = {};
  const int16x4_t x = {};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int n = 0; n < kSums; ++n) {
      asm volatile("smlal %0.4s, %1.4h, %1.4h" : "+w"(sums[n]) : "w"(x));
    }
  }
}

}  // namespace

// As on x86: so many rounds on each thread; returns the operations done, in all.
CLIPQ_API int64_t clipq_peak(int64_t rounds) {
  const bool quads = clipq_generation() > 0;
  int64_t total = 0;
#pragma omp parallel reduction(+ : total)
  {
    (quads ? run_quads : run_pairs)(rounds);
    total += rounds * kSums * (quads ? 16 : 4) * 2;
  }
  return total;
}
