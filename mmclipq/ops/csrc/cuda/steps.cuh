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
void clipq_launch(const ClipqLookup &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqPairwise &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqAvgPool &, const ClipqBuffers &, ClipqStream);
void clipq_launch(const ClipqAffine &, const ClipqBuffers &, ClipqStream);

// A sum whose activation is smooth; b may be null.
void launch_smooth_sum(const ClipqSum &, const uint8_t *a, const uint8_t *b, uint8_t *dst, ClipqStream);
