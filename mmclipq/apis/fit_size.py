"""Finds what a bit of a weight's code must cost for a file of a wanted size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from ..calibration.options import CalibrationOptions
from ..errors import ClipQError
from .quantize_model import CalibrationSession, Quantized

_LEAST, _MOST, _FIRST = -40.0, 0.0, -26.0
"""Rates that are tried, exponents of two: shares of the energy of a layer's output for one bit."""
_STRIDE = 4.0  # octaves, until the wanted size lies in between
_CLOSE = 0.005
_TRIES = 16


class Sizes(Protocol):
    """Bytes that are known from before, by the rate's name."""

    def __contains__(self, key: str) -> bool: ...

    def __getitem__(self, key: str) -> Any: ...

    def __setitem__(self, key: str, value: Any) -> None: ...


@dataclass(frozen=True)
class FittedSize:
    """A rate and the size of the file that it gives.

    Attributes:
        rate: What a bit costs, as a share of the energy of a layer's output.
        size: Bytes of the file.
        wanted: Bytes that were wanted at most.
        tries: How many files were made.
    """

    rate: float
    size: int
    wanted: float
    tries: int

    def __str__(self) -> str:
        return (
            f'size: {self.size} bytes, wanted at most {self.wanted:.0f}, with a rate of '
            f'{self.rate:.3g} per bit, found in {self.tries} tries'
        )


def fit_size(
    session: CalibrationSession,
    options: CalibrationOptions,
    wanted: float,
    size_of: Callable[[Quantized], int],
    known: Sizes | None = None,
) -> FittedSize:
    """Let the session's weights have the codes with the least error in files of ``wanted`` bytes.

    The rate is sought on a logarithmic scale, where sizes lie near a line, until the file is at
    most half a percent smaller than wanted. Sizes almost always fall with the rate; where one does
    not, the file is smaller than wanted by a little more.

    Args:
        session: A calibrated detector that has measured what ``options`` want.
        options: How ranges of activations are chosen.
        wanted: Bytes.
        size_of: Size of the file of a detector's graphs.
        known: Sizes found before the work was interrupted; new ones are put there.

    Raises:
        ClipQError: if no rate gives so small a file.
    """
    sizes: Sizes = {} if known is None else known
    tries = 0
    session.measure_moments()
    with tqdm(total=_TRIES, desc='size', unit='file', delay=2) as bar:

        def excess(octave: float) -> float:
            """Logarithm of the size that the rate ``2**octave`` gives over the one wanted."""
            nonlocal tries
            key = _name(octave)
            if key not in sizes:
                session.weigh(2.0**octave)
                sizes[key] = size_of(session.finish(options))
            tries += 1
            bar.update()
            if octave == _MOST and sizes[key] > wanted:
                raise ClipQError(
                    f'--size: found {sizes[key]} bytes even with weights of zero, wanted '
                    f'{wanted:.0f}; ask for a larger file'
                )
            return math.log(sizes[key] / wanted)

        low = high = _FIRST  # of a file that is too large, and of one that is small enough
        above = below = excess(_FIRST)
        while below > 0:
            low, above = high, below
            high = min(high + _STRIDE, _MOST)
            below = excess(high)
        while above <= 0 and low > _LEAST:
            high, below = low, above
            low = max(low - _STRIDE, _LEAST)
            above = excess(low)
        if above <= 0:
            high, below = low, above
        while below < math.log1p(-_CLOSE) and low < high and tries < _TRIES:
            # At the line between both, aimed at the middle of what is close enough.
            part = (above + _CLOSE / 2) / (above - below)
            middle = low + (high - low) * min(max(part, 0.05), 0.95)
            if (found := excess(middle)) > 0:
                low, above = middle, found
            else:
                high, below = middle, found
        session.weigh(2.0**high)
    return FittedSize(2.0**high, sizes[_name(high)], wanted, tries)


def _name(octave: float) -> str:
    return f'bytes at a rate of 2**{octave!r}'
