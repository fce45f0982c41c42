// Epilogues of layers, as the reference backend computes them: each float32 operation rounded on its
// own, none contracted.

#define CLIPQ_BODY "epilogue_body.h"
#include "targets.h"

void clipq_finish(const ClipqEpilogue &e, const int32_t *sums, int64_t sum_stride,
                  const uint8_t *residual, int64_t residual_stride, void *dst, int64_t dst_stride,
                  int64_t pixels, int64_t first, int64_t channels) {
  CLIPQ_BEST(finish)(e, sums, sum_stride, residual, residual_stride, dst, dst_stride, pixels, first,
                     channels);
}
