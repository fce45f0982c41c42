"""Linear that clips its input and weights (eq. 14 and 15 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..attention import Projection
from ..registry import MODELS
from .clip_mixin import ClipMixin, limit, limit_backward, needed


class _ClipLinear(torch.autograd.Function):
    """Saves the unclipped input, which the activation before it keeps alive anyway."""

    @staticmethod
    def forward(ctx, x, weight, bias, exponents, rounded):
        ctx.save_for_backward(x, weight)
        exponents = needed(x, exponents[0], rounded), needed(weight, exponents[1], rounded)
        ctx.exponents, ctx.rounded = exponents, rounded
        rows = limit(x, exponents[0], rounded).flatten(0, -2)
        result = F.linear(rows, limit(weight, exponents[1], rounded), bias)
        # A view made in here could not be changed in place by the activation that follows.
        return torch.ops.aten._unsafe_view(result, (*x.shape[:-1], weight.shape[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            grad_x = grad @ limit(weight, ctx.exponents[1], ctx.rounded)
            grad_x = limit_backward(grad_x, x, ctx.exponents[0])
        if ctx.needs_input_grad[1]:
            clipped = limit(x, ctx.exponents[0], ctx.rounded)
            grad_weight = rows.t() @ clipped.flatten(0, -2)
            grad_weight = limit_backward(grad_weight, weight, ctx.exponents[1])
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(tuple(range(grad.dim() - 1)))
        return grad_x, grad_weight, grad_bias, None, None


@MODELS.register_module()
class ClipLinear(ClipMixin, nn.Linear):
    """``y = clip(x) @ clip(weight).T + bias`` in float; gradients are 0 outside the ranges.

    Args:
        *args, **kwargs: Those of :class:`torch.nn.Linear` and of :class:`ClipMixin`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Float tensor ``(*, in_features)`` to ``(*, out_features)``."""
        self._observe(x)
        x, weight, bias = self.autocast(x)
        exponents = self.input_exponent, self.weight_exponent
        with torch.autocast(x.device.type, enabled=False):
            if x.dim() == 1:
                return _ClipLinear.apply(x[None], weight, bias, exponents, self.rounded)[0]
            return _ClipLinear.apply(x, weight, bias, exponents, self.rounded)


class ClipProjection(ClipLinear, Projection):
    """The same with rows of an attention's packed weight. Made by :meth:`adopt` alone."""
