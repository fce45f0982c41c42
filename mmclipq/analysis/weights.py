"""How a detector's weights are distributed over powers of two (the paper's Figure 7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration.observer import OctaveHistogram
from ..fixed_point import EXPONENT_MIN

BARS = 101
"""Of the histogram over values."""


@dataclass(frozen=True)
class WeightHistogram:
    """Weights by value and by power-of-two range.

    Attributes:
        count: How many.
        octaves: Exponent ``e`` and number of the weights with ``2**(e-1) < |w| <= 2**e``,
            ascending, without empty ends; the first one also holds all smaller ones.
        limit: Half width of ``bars``, a power of two that holds 99.9 % of the weights.
        bars: Number of weights in equal parts of ``[-limit, limit]``; the others are in the
            outermost ones.
    """

    count: int
    octaves: tuple[tuple[int, int], ...]
    limit: float
    bars: tuple[int, ...]

    @property
    def shares(self) -> list[tuple[int, float, float]]:
        """Exponent, share of its octave, and share of the weights in ``[-2**e, 2**e]``."""
        found, held = [], 0
        for exponent, count in self.octaves:
            held += count
            found.append((exponent, count / self.count, held / self.count))
        return found


@torch.no_grad()
def weight_histogram(weights: Iterable[Tensor], least: float = 1e-3) -> WeightHistogram:
    """The distribution of the values of some tensors.

    Args:
        weights: Float tensors.
        least: Octaves at the lower end that together hold less than this share are one.
    """
    kept = list(weights)
    histogram = OctaveHistogram('weights')
    for weight in kept:
        histogram.update(weight)
    octaves = histogram.table[:, 0].sum(0).view(-1, 32).sum(1).long()
    filled = octaves.nonzero().flatten()
    below = int((octaves.cumsum(0) <= least * histogram.count).sum())
    first, last = max(int(filled[0]), below), int(filled[-1])
    counts = octaves[first : last + 1].tolist()
    counts[0] += int(octaves[:first].sum())
    numbered = tuple((EXPONENT_MIN + first + i, count) for i, count in enumerate(counts))
    limit = 2.0 ** histogram.percentile_exponent(99.9)
    bars = torch.zeros(BARS, dtype=torch.float64)
    for weight in kept:
        values = weight.detach().float().flatten().clamp(-limit, limit)
        bars += torch.histc(values, BARS, -limit, limit)
    return WeightHistogram(histogram.count, numbered, limit, tuple(bars.long().tolist()))
