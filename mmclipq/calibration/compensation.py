"""Codes of weights whose errors make up for each other, with the least error plus rate times bits.

The weights of an output channel are coded one after another. What coding moves one of them by is
taken back, as far as the inputs of the layer allow it, by those that are still to be coded: OBQ
(Frantar and Alistarh 2022, arXiv:2208.11580) in the order and with the Cholesky factor of GPTQ
(Frantar et al. 2023, arXiv:2210.17323). Each code is the one of three that costs least in error
plus rate times bits (:mod:`mmclipq.calibration.rate`); what an error counts is the part of its
input that the inputs still to come do not explain.

A *column* is what a weight of an output channel multiplies: an input channel at a place of the
kernel. Second moments of columns are float64 ``(G, n, n)`` by group of the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .. import fixed_point as fp
from .rate import chosen_codes, code_bits, rated_codes

COLUMNS = 2304
"""Columns that make up for each other at most, 256 input channels of a 3x3 kernel: the columns of
larger layers are cut into blocks, so that moments take 9 kB a column."""
DAMPING = 0.1
"""Share of the mean square of all columns that is added to each one's, for inputs never seen."""
_LAZY = 64  # columns whose errors reach the ones behind them together


def column_blocks(columns: int) -> list[slice]:
    """As few equal parts of ``columns`` as have at most :data:`COLUMNS` each."""
    count = -(-columns // COLUMNS)
    ends = [columns * part // count for part in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Block:
    """How errors of a block of columns make up for each other.

    Attributes:
        columns: Of the layer.
        order: Places within the block in the order of coding, int64 ``(G, n)``.
        spread: What an error of one moves those behind it by, float32 ``(G, n, n)``, above the
            diagonal.
        left: Mean square of what the columns behind it do not explain of each, float32 ``(G, n)``,
            in the order of coding.
    """

    columns: slice
    order: Tensor
    spread: Tensor
    left: Tensor

    @classmethod
    def of(cls, moments: Tensor, columns: slice, damping: float = DAMPING) -> Block:
        """Factors of the second moments of a block, float64 ``(G, n, n)``."""
        groups, count = moments.shape[:2]
        squares = moments.diagonal(dim1=1, dim2=2)
        least = max(float(squares.mean()) * 1e-6, 1e-30)
        added = (damping * squares.mean(1)).clamp(min=least)
        order = squares.argsort(dim=1, descending=True, stable=True)
        sorted_ = moments.gather(1, order[:, :, None].expand_as(moments))
        sorted_ = sorted_.gather(2, order[:, None].expand_as(moments))
        sorted_.diagonal(dim1=1, dim2=2).add_(added[:, None])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(sorted_))
        upper = torch.linalg.cholesky(inverse, upper=True)
        diagonal = upper.diagonal(dim1=1, dim2=2)
        spread = (upper / diagonal[:, :, None]).float()
        return cls(columns, order, spread, diagonal.pow(-2).float())

    def sorted(self, rows: Tensor) -> Tensor:
        """Columns of the block of ``(K, columns)`` in the order of coding, ``(G, K / G, n)``."""
        groups, count = self.order.shape
        block = rows[:, self.columns].reshape(groups, -1, count)
        return block.gather(2, self.order[:, None].expand_as(block))

    def put(self, rows: Tensor, block: Tensor) -> None:
        """Write what :meth:`sorted` gave into ``rows``."""
        places = self.order.argsort(1)[:, None].expand_as(block)
        rows[:, self.columns] = block.gather(2, places).reshape(len(rows), -1)

    def coded(self, scaled: Tensor, counts: Tensor, bits: Tensor, most: Tensor) -> Tensor:
        """Codes of weights in steps, float32 ``(G, R, n)`` in the order of coding.

        Args:
            scaled: Weights in steps, in that order.
            counts: What a squared error of one step counts where nothing makes up for it.
            bits: What the codes -128 to 127 cost, ``(G, R, 256)``.
            most: Largest magnitude of a code, ``(G, R)``.
        """
        rest, codes = scaled.clone(), torch.empty_like(scaled)
        count = scaled.shape[2]
        for start in range(0, count, _LAZY):
            end = min(start + _LAZY, count)
            for place in range(start, end):
                wanted = rest[:, :, place]
                code = chosen_codes(wanted, counts[:, :, place], bits, most)
                codes[:, :, place] = code
                error = wanted - code
                if place + 1 < end:
                    moved = self.spread[:, place, None, place + 1 : end]
                    rest[:, :, place + 1 : end].sub_(error[:, :, None] * moved)
                rest[:, :, place] = error
            if end < count:
                errors = rest[:, :, start:end]
                rest[:, :, end:].sub_(errors @ self.spread[:, start:end, end:])
        return codes


def compensated_codes(
    weight: Tensor, blocks: Sequence[Block], share: Tensor, rate: float, upper: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and exponents of a layer's weights with little error plus ``rate`` times bits.

    Exponents are those of the least cost, errors counted by what the columns still to be coded
    leave of them.

    Args:
        weight: Finite float32 ``(K, ...)``, output channels first, group by group.
        blocks: Of all its columns.
        share: What the mean square of an output counts, float ``(K,)``.
        rate: What a bit counts, above zero.
        upper: Clip exponent of the layer: larger weights saturate there. A step may be coarser than
            that range's, but no code stands for more than the range holds.

    Returns:
        int8 codes of the shape of ``weight``, int32 exponents ``(K,)``.
    """
    rows = weight.detach().float().flatten(1)
    if upper is not None:
        rows = fp.clip(rows, upper)
    counts = torch.empty_like(rows)
    for block in blocks:
        groups = len(block.order)
        left = block.left[:, None].expand(groups, len(rows) // groups, -1)
        block.put(counts, left * share.float().view(groups, -1, 1))
    near, exponents = rated_codes(rows, counts, rate)
    step_exponents = fp.step_exponent(exponents)
    step = fp.power_of_two(step_exponents)[:, None]
    most = torch.full((len(rows),), 127.0)
    if upper is not None:
        most = fp.power_of_two(upper - step_exponents).clamp(max=127).floor()
    bits = rate * code_bits(near.float().square().mean(1).sqrt())
    scaled, counts = rows / step, counts * step.square()
    codes = torch.empty_like(rows)
    for block in blocks:
        groups = len(block.order)
        found = block.coded(
            block.sorted(scaled),
            block.sorted(counts),
            bits.view(groups, -1, 256),
            most.view(groups, -1),
        )
        block.put(codes, found)
    return codes.to(torch.int8).view_as(weight), exponents
