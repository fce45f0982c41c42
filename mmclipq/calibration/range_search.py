"""Choice of power-of-two exponents for activations and weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..errors import ClipQError
from .observer import OctaveHistogram

METHODS = ('mse', 'max')
_SEARCHED_OCTAVES = 8


def activation_exponent(
    histograms: Sequence[OctaveHistogram],
    signed: bool,
    method: str = 'mse',
    upper: int | None = None,
) -> int:
    """Exponent for one tensor, or for several that must share one (a concatenation's inputs).

    Args:
        histograms: Statistics of the tensors.
        signed: Whether the codes are int8, else uint8.
        method: ``'max'`` holds the largest value seen; ``'mse'`` minimises the squared error,
            each tensor's weighed by its own energy so that a quiet one still counts.
        upper: Clip exponent of the layers that read the tensor; never exceeded.

    Raises:
        ClipQError: if the method is unknown or nothing was observed.
    """
    if method not in METHODS:
        raise ClipQError(f'found calibration method {method!r}, wanted one of {METHODS}')
    top = max(histogram.percentile_exponent(100) for histogram in histograms)
    top = top if upper is None else min(top, upper)
    if method == 'max':
        return top
    energies = [max(float(histogram.table[2].sum()), 1e-300) for histogram in histograms]

    def error(exponent: int) -> float:
        errors = (histogram.squared_error(exponent, signed) for histogram in histograms)
        return sum(error / energy for error, energy in zip(errors, energies, strict=True))

    lowest = max(fp.EXPONENT_MIN, top - _SEARCHED_OCTAVES)
    return min(range(top, lowest - 1, -1), key=error)


def weight_exponents(weight: Tensor, upper: int | None, name: str = 'weight') -> Tensor:
    """Exponent of each output channel, the one with the least squared error.

    Args:
        weight: Float tensor whose first axis is the output channel.
        upper: Clip exponent of the layer; never exceeded.
        name: What the weights are called in errors.

    Returns:
        int32 tensor of shape ``(weight.shape[0],)``.

    Raises:
        ClipQError: if the weights hold NaN or infinity.
    """
    fp.check_finite(weight, name)
    rows = weight.detach().float().flatten(1)
    largest = rows.abs().amax(1).tolist()
    top = torch.tensor([fp.holding_exponent(value) for value in largest], device=rows.device)
    limit = fp.EXPONENT_MAX if upper is None else upper
    # The range that holds the channel, up to two octaves less (clips its tail), and one more
    # because a weight at the very top of a range saturates at 127/128 of it.
    best, best_error = top, rows.new_full((len(rows),), torch.inf)
    for shift in (1, 0, -1, -2):
        tried = (top + shift).clamp(fp.EXPONENT_MIN, limit)
        error = fp.quantize(rows, tried, axis=0).sub_(rows).square_().sum(1)
        better = error < best_error
        best = torch.where(better, tried, best)
        best_error = torch.where(better, error, best_error)
    return best.to(torch.int32)
