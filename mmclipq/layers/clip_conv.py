"""Conv2d that clips its input and weights (eq. 14 and 15 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..registry import MODELS
from .clip_mixin import ClipMixin, limit, limit_backward, needed


class _ClipConv2d(torch.autograd.Function):
    """Saves the unclipped input, which the activation before it keeps alive anyway."""

    @staticmethod
    def forward(ctx, x, weight, bias, exponents, rounded, geometry):
        ctx.save_for_backward(x, weight)
        exponents = needed(x, exponents[0], rounded), needed(weight, exponents[1], rounded)
        ctx.exponents, ctx.rounded, ctx.geometry = exponents, rounded, geometry
        ctx.bias_shape = None if bias is None else list(bias.shape)
        x = limit(x, exponents[0], rounded)
        weight = limit(weight, exponents[1], rounded)
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            limit(x, ctx.exponents[0], ctx.rounded),
            limit(weight, ctx.exponents[1], ctx.rounded),
            ctx.bias_shape,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            list(ctx.needs_input_grad[:3]),
        )
        if grad_x is not None:
            grad_x = limit_backward(grad_x, x, ctx.exponents[0])
        if grad_weight is not None:
            grad_weight = limit_backward(grad_weight, weight, ctx.exponents[1])
        return grad_x, grad_weight, grad_bias, None, None, None


@MODELS.register_module()
class ClipConv(ClipMixin, nn.Conv2d):
    """``y = conv(clip(x), clip(weight)) + bias`` in float; gradients are 0 outside the ranges.

    Usable as ``conv_cfg=dict(type='ClipConv', input_range=8, weight_range=0.125)``.

    Args:
        *args, **kwargs: Those of :class:`torch.nn.Conv2d` and of :class:`ClipMixin`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Float tensor ``(N, C, H, W)`` to ``(N, K, P, Q)``, or both without ``N``."""
        self._observe(x)
        (x, weight, bias), padding = self.autocast(x), self.padding
        exponents = self.input_exponent, self.weight_exponent
        with torch.autocast(x.device.type, enabled=False):
            if self.padding_mode != 'zeros' or isinstance(padding, str):
                mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
                x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
                padding = (0, 0)
            geometry = self.stride, padding, self.dilation, self.groups
            if x.dim() == 3:
                x = x[None]
                return _ClipConv2d.apply(x, weight, bias, exponents, self.rounded, geometry)[0]
            return _ClipConv2d.apply(x, weight, bias, exponents, self.rounded, geometry)
