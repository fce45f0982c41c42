// Which instructions this x86 processor has.

#include "codes.h"

// 2 for AVX-512, 1 for AVX2, 0 for what every x86-64 has.
int clipq_best_generation() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return 2;
  }
  return __builtin_cpu_supports("avx2") ? 1 : 0;
}
