"""Which tile and how many splits a convolution on a GPU gets.

Results do not depend on it, only time does. The estimate counts waves of blocks over the
multiprocessors and a fixed cost for each layer; :func:`fastest` measures the best few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .library import Properties, Tile

DEPTH = 64
"""Bytes of depth that a block multiplies in one step."""
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_LEAST_STEPS = 4  # of each split: fewer do not fill the buffers that copies run ahead in
_CLOCK = 1.7e9  # nominal; only ratios matter
_MACS = {75: 1024, 80: 2048, 86: 1024, 89: 1024, 90: 2500}
"""int8 multiply-adds of a multiprocessor per cycle by capability. Of sm_90's 4096 ``mma.sync``
reaches about 62 percent."""
# Share of the peak that a tile can reach: small ones load more for each product.
_EFFICIENCY = {(256, 128): 1.0, (128, 128): 0.95, (128, 64): 0.8, (64, 64): 0.65, (64, 32): 0.45}
_SPLIT_SECONDS, _SPLIT_BYTES = 1e-6, 2e12  # the last block's wait, and the sums' way through L2


@dataclass(frozen=True)
class Choice:
    """A tile and the number of blocks that share the depth of each of its results."""

    tile: Tile
    splits: int

    def tiles(self, pixels: int, outputs: int) -> int:
        """Blocks of one split."""
        return math.ceil(pixels / self.tile.pixels) * math.ceil(outputs / self.tile.outputs)

    def sums(self, pixels: int, outputs: int) -> int:
        """Integers of memory that split products need."""
        if self.splits == 1:
            return 0
        return self.tiles(pixels, outputs) * self.tile.pixels * self.tile.outputs


def estimate(choice: Choice, pixels: int, outputs: int, depth: int, gpu: Properties) -> float:
    """Seconds of a product of ``pixels`` by ``depth`` by ``outputs``, without its fixed cost."""
    tile, steps = choice.tile, depth // DEPTH
    known = max((c for c in _MACS if c <= gpu.capability), default=75)
    rate = _MACS[known] * _CLOCK * _EFFICIENCY.get((tile.pixels, tile.outputs), 0.5)
    waves = math.ceil(choice.tiles(pixels, outputs) * choice.splits / gpu.multiprocessors)
    macs = tile.pixels * tile.outputs * math.ceil(steps / choice.splits) * DEPTH
    seconds = waves * macs / rate
    if choice.splits > 1:
        seconds += _SPLIT_SECONDS + choice.splits * pixels * outputs * 4 / _SPLIT_BYTES
    return seconds


def choices(
    tiles: Iterable[Tile],
    pixels: int,
    outputs: int,
    depth: int,
    few_channels: bool,
    gpu: Properties,
) -> list[Choice]:
    """All tiles and splits that fit a product and a GPU, the best by estimate first.

    Args:
        tiles: Those there are.
        pixels, outputs: Rows and columns of the result.
        depth: Bytes of weights for each output, a multiple of :data:`DEPTH`.
        few_channels: Whether the input's pixels have 4 channels.
        gpu: Where it runs.
    """
    steps = depth // DEPTH
    found = [
        Choice(tile, splits)
        for tile in tiles
        if tile.few_channels == few_channels and tile.shared_bytes <= gpu.shared_bytes
        for splits in SPLITS
        if splits == 1 or steps // splits >= _LEAST_STEPS
    ]
    return sorted(found, key=lambda c: estimate(c, pixels, outputs, depth, gpu))


def fastest(candidates: Sequence[Choice], measure: Callable[[Choice], float]) -> Choice:
    """The candidate that ``measure`` gives the least seconds; an earlier one wins a tie."""
    return min(candidates, key=measure)
