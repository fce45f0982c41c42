"""Streaming statistics of a tensor's magnitudes, enough to choose a power-of-two range."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor
from torch import distributed as dist

from .. import fixed_point as fp
from ..errors import ClipQError

_OCTAVES = fp.EXPONENT_MAX - fp.EXPONENT_MIN + 1


class OctaveHistogram:
    """Counts, sums and sums of squares of ``|x|`` per octave ``(2**(e-1), 2**e]``.

    A power-of-two range cuts the values exactly between two octaves, so percentiles and clipping
    errors are exact although no value is kept, in one pass, whatever the number of batches.

    Attributes:
        table (Tensor): float64 of shape ``(3, octaves)``: counts, sums, sums of squares. The
            first octave also holds everything smaller, zeros included.
        name (str): What the tensor is called in errors.
    """

    def __init__(self, name: str = 'tensor') -> None:
        self.name = name
        self.table = torch.zeros(3, _OCTAVES, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add the values of ``x``.

        Raises:
            ClipQError: if ``x`` holds NaN, infinity or a magnitude above ``2**EXPONENT_MAX``.
        """
        magnitude = x.detach().float().abs().flatten()
        # One below the bits of a power of two lies in the octave that the power closes.
        octave = ((magnitude.view(torch.int32) - 1) >> 23) - 126 - fp.EXPONENT_MIN
        if octave.numel() and int(octave.max()) >= _OCTAVES:
            fp.check_finite(magnitude, self.name)
            fp.check_exponent(math.frexp(float(magnitude.max()))[1], self.name)
        octave = octave.clamp_(min=0).long()
        if torch.are_deterministic_algorithms_enabled():
            # On a GPU bincount has no such form, and PyTorch would refuse it.
            octave, magnitude = octave.cpu(), magnitude.cpu()
        values = magnitude.double()
        rows = (None, values, values * values)
        table = [torch.bincount(octave, weights, minlength=_OCTAVES).double() for weights in rows]
        self.table += torch.stack(table).cpu()

    def all_reduce(self) -> None:
        """Sum the tables of all ranks, so that every rank chooses the same range."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            device = 'cuda' if dist.get_backend() == 'nccl' else 'cpu'
            table = self.table.to(device)
            dist.all_reduce(table)
            self.table = table.cpu()

    @property
    def count(self) -> int:
        """Number of values seen."""
        return int(self.table[0].sum())

    def percentile_exponent(self, percentile: float) -> int:
        """Smallest ``e`` such that ``percentile`` % of the values have ``|x| <= 2**e``.

        Raises:
            ClipQError: if no value was seen, or ``percentile`` is not above 0 and up to 100.
        """
        if not 0 < percentile <= 100:
            raise ClipQError(f'percentile: found {percentile}, wanted one above 0, at most 100')
        if not self.count:
            raise ClipQError(f'{self.name}: found no values to take a range from, wanted a batch')
        # As the decimal that was written: 99.9 % of 1000 values are 999, not a little more.
        wanted = math.ceil(Fraction(str(percentile)) * self.count / 100)
        reached = self.table[0].cumsum(0) >= wanted
        return fp.EXPONENT_MIN + int(reached.to(torch.uint8).argmax())

    def squared_error(self, exponent: int, signed: bool = True) -> float:
        """Sum of squared differences between the values and their codes' values.

        Exact for values that round to zero or saturate at the largest code (a signed negative one
        counts as if it did); the others count ``step**2 / 12`` each.
        """
        step = fp.step(exponent, signed)
        limit = math.ldexp(1.0, exponent) - step
        inside = exponent - fp.EXPONENT_MIN + 1
        to_zero = max(0, fp.step_exponent(exponent, signed) - 1 - fp.EXPONENT_MIN + 1)
        count, total, square = self.table
        clipped = square[inside:] - 2 * limit * total[inside:] + limit * limit * count[inside:]
        rounded = float(count[to_zero:inside].sum()) * step * step / 12
        return float(clipped.sum()) + rounded + float(square[:to_zero].sum())
