"""Bits of the codes that weights would have, as a loss: what an entropy coder makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...errors import ClipQError
from ...layers import ClipMixin
from ...registry import MODELS
from .weighted import WarmedLoss

CLASSES = 32
"""Classes of rows, by how much of their magnitude lies in few weights; each has lengths of its own,
as each class of rows has in a file."""
_LARGEST = 63  # a code beyond it counts as it does
_CODES = _LARGEST + 2
_PRIOR = 0.125  # what a code has before any was counted


def _scaled(weight: Tensor, fineness: float) -> tuple[Tensor, Tensor]:
    """Magnitudes of rows ``(K, n)`` in steps, and a row's step ``(K, 1)``."""
    rows = weight.detach().float().flatten(1)
    step = rows.square().mean(1, keepdim=True).sqrt().clamp_(min=1e-12) / fineness
    return (rows.abs() / step).clamp_(max=_LARGEST), step


def _classes(scaled: Tensor, fineness: float) -> Tensor:
    """Class of each row, int64 ``(K, 1)``: its mean magnitude, which its zeros make small."""
    share = scaled.mean(1, keepdim=True) / fineness
    return (share * CLASSES).long().clamp_(0, CLASSES - 1)


class _Bits(torch.autograd.Function):
    """Sum of the bits of all weights.

    A weight between two codes counts as a part of each (a soft histogram). Its bits are then those
    of both in these parts, and their slope is the gradient of the entropy itself, for what an
    entropy changes by its own logarithms adds up to nothing.
    """

    @staticmethod
    def forward(ctx: Any, fineness: float, *weights: Tensor) -> Tensor:
        counts = weights[0].new_full((CLASSES * _CODES,), _PRIOR, dtype=torch.float32)
        for weight in weights:
            scaled, _ = _scaled(weight, fineness)
            lower = scaled.floor()
            part = scaled - lower
            place = (_CODES * _classes(scaled, fineness) + lower.long()).flatten()
            counts.index_add_(0, place, (1 - part).flatten())
            counts.index_add_(0, place + 1, part.flatten())
        table = counts.view(CLASSES, _CODES)
        lengths = (table.sum(1, keepdim=True) / table).log2()
        lengths[:, 1:] += 1  # of the sign
        ctx.save_for_backward(lengths, *weights)
        ctx.fineness = fineness
        return ((table - _PRIOR) * lengths).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        lengths, *weights = ctx.saved_tensors
        slopes = lengths.diff(dim=1, append=lengths[:, -1:]).flatten()
        found = []
        for weight in weights:
            scaled, step = _scaled(weight, ctx.fineness)
            place = _CODES * _classes(scaled, ctx.fineness) + scaled.long()
            rows = weight.detach().float().flatten(1)
            slope = slopes[place] * rows.sign() / step
            # Steps follow the row's magnitude, so a row that shrinks as a whole has the same bits.
            along = (slope * rows).sum(1, keepdim=True) / (step * ctx.fineness).square()
            slope -= along / rows.shape[1] * rows
            found.append((slope * grads[0]).view_as(weight).to(weight.dtype))
        return None, *found


@MODELS.register_module()
class BitsLoss(WarmedLoss):
    """Bits per weight of the codes of all clipped layers, times a share of the detector's losses.

    Codes are counted in steps of a share of each row's root mean square, a row being an output
    channel; rows whose magnitude is spread alike share the lengths of codes. The gradient moves
    magnitude from the many weights that are nearly zero to the few that are not, at the same root
    mean square of the row: what :class:`mmclipq.graph.codes` then stores in fewer bytes.

    Args:
        loss_weight: What a bit per weight costs, as a share of the detector's own losses.
        fineness: Steps in a row's root mean square.
        warmup_iters: Iterations over which the weight grows linearly from zero.

    Raises:
        ClipQError: if a number is negative, or ``fineness`` not above zero.
    """

    def __init__(
        self, loss_weight: float = 3.0, fineness: float = 2.0, warmup_iters: int = 0
    ) -> None:
        super().__init__(loss_weight, warmup_iters)
        if loss_weight < 0 or warmup_iters < 0 or not 0 < fineness <= _LARGEST:
            raise ClipQError(
                f'BitsLoss: found loss_weight={loss_weight}, fineness={fineness}, '
                f'warmup_iters={warmup_iters}, wanted numbers that are not negative, and a '
                f'fineness above 0 up to {_LARGEST}'
            )
        self.fineness = fineness

    def bits(self, layers: Iterable[ClipMixin]) -> Tensor:
        """Bits per weight, a scalar, of the layers that train; zero if there are none."""
        weights = [layer.product_weight() for layer in layers if layer.weight.requires_grad]
        if not weights:
            return torch.zeros(())
        return _Bits.apply(self.fineness, *weights) / sum(weight.numel() for weight in weights)

    def forward(
        self, layers: Iterable[ClipMixin], iteration: int = 0, others: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Scalar loss, and bits per weight.

        Args:
            layers: Clipped layers.
            iteration: 0-based.
            others: Sum of the detector's own losses.
        """
        bits = self.bits(layers)
        return bits * (self.factor(iteration) * others), bits.detach()
