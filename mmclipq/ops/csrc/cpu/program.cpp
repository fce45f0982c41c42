// Runs the steps of a program, one after another, without Python in between.

#include <omp.h>

#include <cstdio>
#include <exception>

#include "api.h"

namespace {

enum Kind : int64_t {
  kProduct,
  kSum,
  kQuantize,
  kDequantize,
  kCopy,
  kMaxPool,
  kUpsample,
  kFlatten,
  kRoIAlign,
};

}  // namespace

struct ClipqStep {
  int64_t kind;
  const void *step;
};

namespace {

template <typename Step>
void run(const void *step, const ClipqBuffers &buffers) {
  clipq_step(*static_cast<const Step *>(step), buffers);
}

void dispatch(const ClipqStep &step, const ClipqBuffers &buffers) {
  switch (step.kind) {
    case kProduct: return run<ClipqProductStep>(step.step, buffers);
    case kSum: return run<ClipqSum>(step.step, buffers);
    case kQuantize: return run<ClipqQuantize>(step.step, buffers);
    case kDequantize: return run<ClipqDequantize>(step.step, buffers);
    case kCopy: return run<ClipqCopy>(step.step, buffers);
    case kMaxPool: return run<ClipqMaxPool>(step.step, buffers);
    case kUpsample: return run<ClipqUpsample>(step.step, buffers);
    case kFlatten: return run<ClipqFlatten>(step.step, buffers);
    case kRoIAlign: return run<ClipqRoIAlign>(step.step, buffers);
  }
}

}  // namespace

// OpenMP keeps this number for each calling thread; oneDNN and all operators here follow it.
CLIPQ_API void clipq_set_threads(int32_t count) { omp_set_num_threads(count); }

// Returns 1, or 0 with a text in `error`.
CLIPQ_API int32_t clipq_run(const ClipqStep *steps, int64_t count, void *const *buffers,
                            char *error, int64_t error_size) {
  try {
    const ClipqBuffers places(buffers);
    for (int64_t i = 0; i < count; ++i) dispatch(steps[i], places);
    return 1;
  } catch (const std::exception &exception) {
    std::snprintf(error, static_cast<size_t>(error_size), "%s", exception.what());
    return 0;
  }
}
