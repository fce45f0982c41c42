"""Streaming statistics of a tensor's magnitudes, enough to choose a power-of-two range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor
from torch import distributed as dist

from .. import fixed_point as fp
from ..errors import ClipQError

_OCTAVES = fp.EXPONENT_MAX - fp.EXPONENT_MIN + 1
_PARTS = 32
_BINS = _OCTAVES * _PARTS
_MANTISSA_BITS = 23 - 5  # of a float32, below those that number the parts of an octave
_CPU_BLOCK, _BLOCK = 1 << 16, 1 << 22
"""Values that are counted at once: so many stay in a core's cache, and bound the memory."""


class OctaveHistogram:
    """Counts, sums and sums of squares of ``|x|`` by sign, in 32 equal parts of every octave.

    An octave is ``(2**(e-1), 2**e]``. A power-of-two range, also one that an offset has moved, cuts
    the values exactly between two parts, so percentiles and clipping errors are exact although no
    value is kept, in one pass, whatever the number of batches.

    Attributes:
        table (Tensor): float64 of shape ``(2, 3, parts)``: not negative and negative values; their
            counts, sums and sums of squares. The first part also holds everything smaller, zeros
            included.
        name (str): What the tensor is called in errors.
    """

    def __init__(self, name: str = 'tensor') -> None:
        self.name = name
        self.table = torch.zeros(2, 3, _BINS, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add the values of ``x``.

        Raises:
            ClipQError: if ``x`` holds NaN, infinity or a magnitude above ``2**EXPONENT_MAX``.
        """
        x = x.detach().flatten()
        table = torch.zeros_like(self.table)
        for block in x.split(_CPU_BLOCK if x.device.type == 'cpu' else _BLOCK):
            block = block.float()
            magnitude = block.abs()
            # One below the bits of a boundary lies in the part that the boundary closes.
            part = ((magnitude.view(torch.int32) - 1) >> _MANTISSA_BITS) - _PARTS * (
                126 + fp.EXPONENT_MIN
            )
            if part.numel() and int(part.max()) >= _BINS:
                fp.check_finite(x, self.name)
                fp.check_exponent(math.frexp(float(magnitude.max()))[1], self.name)
            part = part.clamp_(min=0).long() + _BINS * (block < 0)
            if torch.are_deterministic_algorithms_enabled():
                # On a GPU bincount has no such form, and PyTorch would refuse it.
                part, magnitude = part.cpu(), magnitude.cpu()
            values = magnitude.double()
            rows = [
                torch.bincount(part, weights, minlength=2 * _BINS).double()
                for weights in (None, values, values * values)
            ]
            table += torch.stack(rows).cpu().view(3, 2, _BINS).transpose(0, 1)
        self.table += table

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
        return int(self.table[:, 0].sum())

    @property
    def energy(self) -> float:
        """Sum of the squares of all values."""
        return float(self.table[:, 2].sum())

    def reach(self) -> tuple[float, float]:
        """Upper ends of the parts with the largest value and with the lowest, zero for none.

        The second is the magnitude of a negative one.
        """
        ends = []
        for counts in self.table[:, 0]:
            parts = counts.nonzero()
            ends.append(_end(int(parts[-1])) if len(parts) else 0.0)
        return ends[0], ends[1]

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
        octaves = self.table[:, 0].sum(0).view(_OCTAVES, _PARTS).sum(1)
        reached = octaves.cumsum(0) >= wanted
        return fp.EXPONENT_MIN + int(reached.to(torch.uint8).argmax())

    def squared_error(self, exponent: int, signed: bool = True, offset: int = 0) -> float:
        """Sum of squared differences between the values and their codes' values.

        Exact for values that round to zero or saturate beyond the outermost codes; the others count
        ``step**2 / 12`` each.

        Args:
            exponent: Of the range.
            signed: Whether the codes are int8, else uint8.
            offset: Code that stands for zero.
        """
        step = fp.step(exponent, signed)
        to_zero = _parts_up_to(step / 2)
        total = 0.0
        for table, (limit, inside) in zip(self.table, _ends(step, signed, offset), strict=True):
            count, first, second = table
            clipped = second[inside:] - 2 * limit * first[inside:] + limit * limit * count[inside:]
            zero = min(to_zero, inside)
            total += float(clipped.sum()) + float(second[:zero].sum())
            total += float(count[zero:inside].sum()) * step * step / 12
        return total

    def share_beyond(self, exponent: int, signed: bool = True, offset: int = 0) -> Fraction:
        """Share of the values that saturate because they lie beyond the outermost codes.

        Values of up to one step beyond the largest code do not count. The arguments are those of
        :meth:`squared_error`.
        """
        ends = _ends(fp.step(exponent, signed), signed, offset)
        beyond = sum(
            int(count[inside:].sum())
            for count, (_, inside) in zip(self.table[:, 0], ends, strict=True)
        )
        return Fraction(beyond, max(1, self.count))

    def divergence(self, exponent: int, signed: bool = True, offset: int = 0) -> float:
        """Kullback-Leibler divergence in nats of the values from what is left of them as codes.

        Values beyond the outermost codes lie in the last part inside; what rounds to one code is
        spread evenly over those parts of its cell that hold values. A part where none lies counts
        as half a value. Exact zeros, which every code holds, are left out, and so is what happens
        inside of one part. The arguments are those of :meth:`squared_error`.
        """
        step = fp.step(exponent, signed)
        real, kept, widths, codes = [], [], [], []
        ends = _ends(step, signed, offset)
        for side, (seen, (_, inside)) in enumerate(zip(self.table[:, 0], ends, strict=True)):
            values = seen[:inside].clone()
            values[:1] = 0
            kept.append(values)
            clipped = values.clone()
            clipped[-1:] += seen[max(inside, 1) :].sum()
            real.append(clipped)
            widths.append(_WIDTHS[:inside])
            code = torch.floor(_MIDDLES[:inside] / step + 0.5).long()
            # Zero is one code for both sides.
            codes.append(torch.where(code > 0, 2 * code - side, 0))
        wanted, values = torch.cat(real), torch.cat(kept)
        if not values.sum():
            return math.inf if wanted.sum() else 0.0
        width = torch.where(values > 0, torch.cat(widths), 0.0)
        _, cell = torch.cat(codes).unique(return_inverse=True)
        sums = torch.zeros(2, int(cell.max()) + 1, dtype=torch.float64)
        sums.index_add_(1, cell, torch.stack([values, width]))
        mass, whole = sums[:, cell]
        spread = torch.where(width > 0, mass * width / whole.clamp(min=1e-300), 0.5)
        p, q = wanted / wanted.sum(), spread / values.sum()
        return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())


def _ends(step: float, signed: bool, offset: int) -> Iterator[tuple[float, int]]:
    """Value of the outermost code above zero, then below, and how many parts it holds."""
    low, high = fp.code_range(signed)
    # Above, values up to one step more round to the last code.
    for codes, more in ((high - offset, 1), (offset - low, 0)):
        yield codes * step, _parts_up_to((codes + more) * step if codes else 0.0)


def _end(part: int) -> float:
    """Upper end of the part of this number."""
    octave, number = divmod(part, _PARTS)
    return math.ldexp(1 + (number + 1) / _PARTS, fp.EXPONENT_MIN + octave - 1)


def _parts_up_to(limit: float) -> int:
    """How many parts lie at or below ``limit``, which is the end of one, or zero."""
    if limit <= 0:
        return 0
    fraction, exponent = math.frexp(limit)  # limit = fraction * 2**exponent, fraction in [1/2, 1)
    octave = exponent - fp.EXPONENT_MIN
    number = math.floor((2 * fraction - 1) * _PARTS)
    return min(max(octave * _PARTS + number, 0), _BINS)


_UPPER_ENDS = torch.tensor([_end(part) for part in range(_BINS)], dtype=torch.float64)
_WIDTHS = torch.diff(_UPPER_ENDS, prepend=torch.zeros(1, dtype=torch.float64))
_MIDDLES = _UPPER_ENDS - _WIDTHS / 2
