"""The Lq loss, which pulls weights onto the fixed-point grid (eq. 20 to 23 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ... import fixed_point as fp
from ...errors import ClipQError
from ...layers import ClipMixin
from ...ops.cpu.library import why_unavailable
from ...ops.cpu.lq import lq_gradient, lq_sum
from ...registry import MODELS
from .weighted import WarmedLoss

TARGETS = ('grid', 'clip')


def lq_target(weight: Tensor, exponent: int, target: str) -> Tensor:
    """``C(w)``: the nearest fixed-point value (``'grid'``) or the clipped weight (``'clip'``)."""
    return fp.quantize(weight, exponent) if target == 'grid' else fp.clip(weight, exponent)


def _blocks(weight: Tensor) -> tuple[Tensor, ...]:
    """Flat pieces of ``weight`` that stay in a CPU's cache between two elementwise passes."""
    flat = weight.flatten()
    return flat.split(1 << 18) if flat.device.type == 'cpu' else (flat,)


def _distance(weight: Tensor, exponent: int, target: str, out: Tensor | None = None) -> Tensor:
    """``(w - C(w)) / step`` in few passes; exact, because steps are powers of two."""
    step = fp.step(exponent)
    if target == 'clip':
        return torch.sub(weight, fp.clip(weight, exponent), out=out).div_(step)
    scaled = torch.mul(weight, 1 / step, out=out)
    return scaled.sub_(scaled.round().clamp_(*fp.code_range()))


def _compiled(weight: Tensor) -> bool:
    """Whether the compiled operators read ``weight``."""
    plain = weight.device.type == 'cpu' and weight.dtype == torch.float32
    return plain and weight.is_contiguous() and not why_unavailable()


class _SquaredDistance(torch.autograd.Function):
    """``sum((w - C(w))**2)`` with ``C(w)`` constant; recomputes ``C(w)`` rather than keep it.

    Compiled, each way is one pass over the weights; the same gradient, and a sum that is closer to
    the exact one.
    """

    @staticmethod
    def forward(ctx, weight, exponent, target):
        ctx.save_for_backward(weight)
        ctx.arguments = exponent, target
        if _compiled(weight):
            return weight.new_tensor(lq_sum(weight, exponent, target == 'grid'))
        distances = (_distance(w, exponent, target) for w in _blocks(weight))
        return torch.stack([d.square_().sum() for d in distances]).sum() * fp.step(exponent) ** 2

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
        exponent, target = ctx.arguments
        factor = 2 * fp.step(exponent) * grad
        if _compiled(weight):
            lq_gradient(weight, exponent, target == 'grid', float(factor), gradient)
            return gradient, None, None
        for part, w in zip(_blocks(gradient), _blocks(weight), strict=True):
            _distance(w, exponent, target, out=part).mul_(factor)
        return gradient, None, None


@MODELS.register_module()
class LqLoss(WarmedLoss):
    """``loss_weight * sum((w - C(w))**2)`` over the weights of all clipped layers.

    Args:
        loss_weight: The paper's lambda; eq. 23 has 1.
        target: ``'grid'`` pulls to the nearest fixed-point value of the layer's range (Fig. 6),
            ``'clip'`` only back into the range.
        warmup_iters: Iterations over which the weight grows linearly from zero.

    Raises:
        ClipQError: if ``target`` is unknown or a number is negative.
    """

    def __init__(
        self, loss_weight: float = 1.0, target: str = 'grid', warmup_iters: int = 0
    ) -> None:
        super().__init__(loss_weight, warmup_iters)
        if target not in TARGETS:
            raise ClipQError(f'LqLoss: found target {target!r}, wanted one of {TARGETS}')
        if loss_weight < 0 or warmup_iters < 0:
            raise ClipQError(
                f'LqLoss: found loss_weight={loss_weight}, warmup_iters={warmup_iters}, '
                'wanted numbers that are not negative'
            )
        self.target = target

    def forward(self, layers: Iterable[ClipMixin], iteration: int = 0) -> Tensor:
        """Scalar loss over the layers that train and whose weight range is known."""
        distances = [
            _SquaredDistance.apply(layer.product_weight(), layer.weight_exponent, self.target)
            for layer in layers
            if layer.weight_exponent is not None and layer.weight.requires_grad
        ]
        if not distances:
            return torch.zeros(())
        return torch.stack(distances).sum() * self.factor(iteration)
