"""Weight codes, scales and biases as QuantizeLinear operators want them: scales are positive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

_SMALLEST = 2.0**-100
"""Scales below it are taken for zero: no int32 sum then reaches a step of any tensor."""


@dataclass(frozen=True)
class FoldedWeights:
    """A product's constants.

    Attributes:
        codes: Int8 weight codes, channels first.
        scale: Positive float32 scales ``(channels,)``.
        bias: Float32 biases ``(channels,)``.
        sign: Float32 factors +1 and -1 to multiply the sums with, or None if all are +1.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    sign: np.ndarray | None


def folded_weights(
    weight: Tensor, multiplier: Tensor, bias: Tensor, input_step: int
) -> FoldedWeights:
    """Constants whose product with dequantized inputs is ``acc * multiplier + bias``.

    A negative multiplier turns the signs of its channel's codes; where one of them is -128, which
    has no opposite, the sums of that channel get a factor -1 instead. A multiplier of zero becomes
    codes of zero, with a scale that lets the bias be represented in 24 bits.

    Args:
        weight: Int8 codes, channels first.
        multiplier: Float32 ``(channels,)``.
        bias: Float32 ``(channels,)``.
        input_step: Exponent of the input's step.
    """
    codes = weight.detach().cpu().numpy().copy()
    factor, added = (value.detach().cpu().double().numpy() for value in (multiplier, bias))
    scale = np.abs(factor) * math.ldexp(1.0, -input_step)
    sign = np.ones(len(codes), np.float32)
    for channel in range(len(codes)):
        if scale[channel] < _SMALLEST:
            codes[channel] = 0
            scale[channel] = max(abs(float(added[channel])), 2.0**-30) * math.ldexp(
                1.0, -24 - input_step
            )
        elif factor[channel] < 0:
            if (codes[channel] == -128).any():
                sign[channel] = -1
            else:
                codes[channel] = -codes[channel]
    mixed = sign if (sign < 0).any() else None
    return FoldedWeights(codes, scale.astype(np.float32), added.astype(np.float32), mixed)
