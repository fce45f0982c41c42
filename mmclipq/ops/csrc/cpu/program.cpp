// Runs the steps of a program, one after another, without Python in between.

#include <omp.h>

#include <cstdio>
#include <exception>

#include "api.h"
#include "codes.h"

namespace {

int generation = clipq_best_generation();

}  // namespace

int clipq_generation() { return generation; }

// Lets the operators use older vector units than the processor's, for tests; returns what they use.
CLIPQ_API int32_t clipq_limit_generation(int32_t most) {
  generation = most < clipq_best_generation() ? most : clipq_best_generation();
  return generation;
}

// OpenMP keeps this number for each calling thread; oneDNN and all operators here follow it.
CLIPQ_API void clipq_set_threads(int32_t count) { omp_set_num_threads(count); }

// Returns 1, or 0 with a text in `error`.
CLIPQ_API int32_t clipq_run(const ClipqStep *steps, int64_t count, void *const *buffers,
                            char *error, int64_t error_size) {
  try {
    const ClipqBuffers places(buffers);
    for (int64_t i = 0; i < count; ++i) {
      clipq_dispatch(steps[i], [&](const auto &step) { clipq_step(step, places); });
    }
    return 1;
  } catch (const std::exception &exception) {
    std::snprintf(error, static_cast<size_t>(error_size), "%s", exception.what());
    return 0;
  }
}
