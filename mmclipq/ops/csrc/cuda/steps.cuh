// One launch function for each kind of step.
#pragma once

#include "../common/steps.h"
#include "device.cuh"

void clipq_launch(const ClipqProductStep &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqSum &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqQuantize &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqDequantize &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqCopy &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqMaxPool &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqUpsample &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqFlatten &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqRoIAlign &, const ClipqBuffers &, ClipqStream);

// Of the other kinds, which a GPU leaves to Python.
template <typename Step>
void clipq_launch(const Step &, const ClipqBuffers &, ClipqStream) {
  throw std::runtime_error("found a step that has no kernel");
}
