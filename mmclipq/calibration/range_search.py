"""Choice of power-of-two exponents for activations and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..errors import ClipQError
from .observer import OctaveHistogram
from .options import METHODS

OFFSETS = (8, 16, 32, 64)
"""Codes that may stand for zero where a tensor reaches a little below it."""
_SEARCHED_OCTAVES = 8


class CodeRange(NamedTuple):
    """What codes are: their range exponent, whether int8, and the code that stands for zero."""

    exponent: int
    signed: bool
    offset: int = 0


def candidates(
    histograms: Sequence[OctaveHistogram],
    signed: bool,
    upper: int | None = None,
    offsets: Sequence[int] = (),
) -> list[CodeRange]:
    """Ranges that may suit tensors of one range, from the widest on; int8 or uint8 ones first.

    Args:
        histograms: Statistics of the tensors.
        signed: Whether values can be negative; if not, the codes are uint8 without an offset.
        upper: Clip exponent of the layers that read the tensors; never exceeded.
        offsets: Codes of uint8 that may stand for zero, tried beside int8 where ``signed``.
    """
    top = max(histogram.percentile_exponent(100) for histogram in histograms)
    limit = fp.EXPONENT_MAX if upper is None else upper
    return [
        CodeRange(exponent, *kind)
        for kind in _kinds(signed, offsets)
        # An offset takes a part of the range away above, which one octave more gives back.
        for exponent in range(
            min(top + bool(kind[1]), limit),
            max(fp.EXPONENT_MIN, min(top, limit) - _SEARCHED_OCTAVES) - 1,
            -1,
        )
    ]


def _kinds(signed: bool, offsets: Sequence[int]) -> list[tuple[bool, int]]:
    return [(signed, 0), *((False, offset) for offset in offsets if signed)]


def relative_error(histograms: Sequence[OctaveHistogram], range_: CodeRange) -> float:
    """Squared error of the tensors in this range, each as a share of its own energy, summed."""
    energies = (max(histogram.energy, 1e-300) for histogram in histograms)
    return sum(
        histogram.squared_error(*range_) / energy
        for histogram, energy in zip(histograms, energies, strict=True)
    )


def activation_range(
    histograms: Sequence[OctaveHistogram],
    signed: bool,
    method: str = 'mse',
    upper: int | None = None,
    offsets: Sequence[int] = (),
    percentile: float = 99.99,
) -> CodeRange:
    """Codes of one tensor, or of several that must share them (a concatenation's inputs).

    Args:
        histograms, signed, upper, offsets: As for :func:`candidates`.
        method: ``'max'`` holds every value seen with the smallest step, ``'percentile'`` that share
            of each tensor's; ``'mse'`` minimises the squared error, each tensor's weighed by its
            own energy so that a quiet one still counts; ``'kl'`` the Kullback-Leibler divergence
            of the values from the codes' values, summed over the tensors. ``'output'`` cannot be
            told from the tensor alone: it is ``'mse'`` here, for tensors that no layer reads.
        percentile: In percent.

    Raises:
        ClipQError: if the method is unknown or nothing was observed.
    """
    if method not in METHODS:
        raise ClipQError(f'found calibration method {method!r}, wanted one of {METHODS}')
    top = max(histogram.percentile_exponent(100) for histogram in histograms)
    limit = fp.EXPONENT_MAX if upper is None else upper
    if method == 'max':
        above, below = (max(ends) for ends in zip(*(h.reach() for h in histograms), strict=True))
        held = (_holding(above, below, *kind) for kind in _kinds(signed, offsets))
        found = [range_ for range_ in held if range_ is not None and range_.exponent <= limit]
        return min(found, key=_step, default=CodeRange(min(top, limit), signed))
    tried = candidates(histograms, signed, upper, offsets)
    if method == 'percentile':
        allowed = 1 - Fraction(str(percentile)) / 100
        found = [r for r in tried if all(h.share_beyond(*r) <= allowed for h in histograms)]
        return min(found, key=_step, default=CodeRange(min(top, limit), signed))
    if method == 'kl':
        return min(tried, key=lambda range_: sum(h.divergence(*range_) for h in histograms))
    return min(tried, key=lambda range_: relative_error(histograms, range_))


def _step(range_: CodeRange) -> float:
    return fp.step(range_.exponent, range_.signed)


def _holding(above: float, below: float, signed: bool, offset: int) -> CodeRange | None:
    """The smallest range of this kind with values from ``-below`` to ``above``; None if none has.

    A value of up to one step beyond the largest code counts as held.
    """
    if not signed and not offset and below > 0:
        return None
    codes = 128 if signed else 256
    shares = ((codes - offset) / codes, 1.0 if signed else offset / codes)
    needed = above / shares[0], below / shares[1] if below > 0 else 0.0
    if max(needed) > math.ldexp(1.0, fp.EXPONENT_MAX):
        return None
    return CodeRange(fp.holding_exponent(max(needed)), signed, offset)


def weight_exponents(
    weight: Tensor,
    upper: int | None,
    name: str = 'weight',
    importance: Tensor | None = None,
) -> Tensor:
    """Exponent of each output channel, the one with the least squared error.

    Args:
        weight: Float tensor whose first axis is the output channel.
        upper: Clip exponent of the layer; never exceeded.
        name: What the weights are called in errors.
        importance: What a squared error counts, broadcast over the weights; 1 by default. The mean
            square of what a weight multiplies makes it the error of the output.

    Returns:
        int32 tensor of shape ``(weight.shape[0],)``.

    Raises:
        ClipQError: if the weights hold NaN or infinity.
    """
    fp.check_finite(weight, name)
    rows = weight.detach().float().flatten(1)
    counts = None if importance is None else importance.expand_as(weight).flatten(1)
    largest = rows.abs().amax(1).tolist()
    top = torch.tensor([fp.holding_exponent(value) for value in largest], device=rows.device)
    limit = fp.EXPONENT_MAX if upper is None else upper
    # The range that holds the channel, up to two octaves less (clips its tail), and one more
    # because a weight at the very top of a range saturates at 127/128 of it.
    best, best_error = top, rows.new_full((len(rows),), torch.inf)
    for shift in (1, 0, -1, -2):
        tried = (top + shift).clamp(fp.EXPONENT_MIN, limit)
        squares = fp.quantize(rows, tried, axis=0).sub_(rows).square_()
        error = (squares if counts is None else squares.mul_(counts)).sum(1)
        better = error < best_error
        best = torch.where(better, tried, best)
        best_error = torch.where(better, error, best_error)
    return best.to(torch.int32)
