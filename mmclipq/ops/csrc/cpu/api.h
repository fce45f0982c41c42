// What the sources of the CPU operators share.
#pragma once

#include "../common/steps.h"

// One clone for each generation of vector units; the loader takes the best.
#ifdef __x86_64__
#define CLIPQ_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define CLIPQ_VECTORIZED
#endif
#define CLIPQ_INLINE inline __attribute__((always_inline))

void clipq_step(const ClipqProductStep &, const ClipqBuffers &);
void clipq_step(const ClipqSum &, const ClipqBuffers &);
void clipq_step(const ClipqQuantize &, const ClipqBuffers &);
void clipq_step(const ClipqDequantize &, const ClipqBuffers &);
void clipq_step(const ClipqCopy &, const ClipqBuffers &);
void clipq_step(const ClipqMaxPool &, const ClipqBuffers &);
void clipq_step(const ClipqUpsample &, const ClipqBuffers &);
void clipq_step(const ClipqFlatten &, const ClipqBuffers &);
void clipq_step(const ClipqRoIAlign &, const ClipqBuffers &);
void clipq_step(const ClipqLookup &, const ClipqBuffers &);
void clipq_step(const ClipqPairwise &, const ClipqBuffers &);
void clipq_step(const ClipqAvgPool &, const ClipqBuffers &);
void clipq_step(const ClipqAffine &, const ClipqBuffers &);
