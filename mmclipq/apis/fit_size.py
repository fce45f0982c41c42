"""Finds what a bit of a weight's code must cost for a file of a wanted size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from ..calibration.options import CalibrationOptions
from ..errors import ClipQError
from .quantize_model import CalibrationSession, Quantized

_LEAST, _MOST = -40, 0
"""Rates that are tried, exponents of two: shares of the energy of a layer's output for one bit."""
_CLOSE = 0.005
_TRIES = 14


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
) -> FittedSize:
    """Let the session's weights have the codes with the least error in files of ``wanted`` bytes.

    The rate is halved in between, on a logarithmic scale, until the file is at most half a percent
    smaller than wanted. Sizes almost always fall with the rate; where one does not, the file is
    smaller than wanted by a little more.

    Args:
        session: A calibrated detector that has measured what ``options`` want.
        options: How ranges of activations are chosen.
        wanted: Bytes.
        size_of: Size of the file of a detector's graphs.

    Raises:
        ClipQError: if no rate gives so small a file.
    """
    tried: dict[float, int] = {}
    session.measure_energies()
    with tqdm(total=_TRIES, desc='size', unit='file', delay=2) as bar:

        def size(rate: float) -> int:
            session.weigh(rate)
            tried[rate] = size_of(session.finish(options))
            bar.update()
            return tried[rate]

        low, high = float(_LEAST), float(_MOST)
        if size(2.0**low) > wanted:
            if (least := size(2.0**high)) > wanted:
                raise ClipQError(
                    f'--size: found {least} bytes even with weights of zero, wanted '
                    f'{wanted:.0f}; ask for a larger file'
                )
            while len(tried) < _TRIES and tried[2.0**high] < (1 - _CLOSE) * wanted:
                middle = (low + high) / 2
                if size(2.0**middle) > wanted:
                    low = middle
                else:
                    high = middle
        else:
            high = low
        best = 2.0**high
        session.weigh(best)
    return FittedSize(best, tried[best], wanted, len(tried))
