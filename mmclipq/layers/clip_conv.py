"""Convolutions that clip their inputs and weights (eq. 14 and 15 of the paper)."""

from __future__ import annotations

import torch
from mmcv.cnn import ConvWS2d
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..fixed_point import covering_padding
from ..registry import MODELS
from .clip_mixin import ClipMixin, limit, limit_backward, needed


class _ClipConvolution(torch.autograd.Function):
    """Saves the unclipped input, which the activation before it keeps alive anyway."""

    @staticmethod
    def forward(ctx, x, weight, bias, exponents, rounded, geometry):
        ctx.save_for_backward(x, weight)
        exponents = needed(x, exponents[0], rounded), needed(weight, exponents[1], rounded)
        ctx.exponents, ctx.rounded, ctx.geometry = exponents, rounded, geometry
        ctx.bias_shape = None if bias is None else list(bias.shape)
        x = limit(x, exponents[0], rounded)
        weight = limit(weight, exponents[1], rounded)
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            limit(x, ctx.exponents[0], ctx.rounded),
            limit(weight, ctx.exponents[1], ctx.rounded),
            ctx.bias_shape,
            *ctx.geometry,
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
        x, weight, bias = self.autocast(x)
        with torch.autocast(x.device.type, enabled=False):
            x, padding = self._padded(x)
            geometry = self.stride, padding, self.dilation, False, (0, 0), self.groups
            return _convolve(self, x, weight, bias, geometry)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Input with the padding that no convolution does by itself, and the rest of it."""
        if self.padding_mode == 'zeros' and not isinstance(self.padding, str):
            return x, self.padding
        mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)


class ClipConvAdaptive(ClipConv, Conv2dAdaptivePadding):
    """:class:`ClipConv` whose padding makes ``ceil(size / stride)`` rows and columns, as
    EfficientNet's do; swapped in for MMCV's ``Conv2dAdaptivePadding``.
    """

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        rows, columns = covering_padding(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
        return F.pad(x, (*columns, *rows)), (0, 0)


class ClipConvWS(ClipConv, ConvWS2d):
    """:class:`ClipConv` of standardized weights, for MMCV's ``ConvWS2d``.

    The range is that of the standardized weights, which enter the product.
    """

    eps: float

    def product_weight(self) -> Tensor:
        """Each output channel's weights less their mean, over their deviation plus ``eps``."""
        rows = self.weight.flatten(1)
        mean, deviation = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
        return ((rows - mean) / (deviation + self.eps)).view_as(self.weight)


class ClipConvTranspose(ClipMixin, nn.ConvTranspose2d):
    """Transposed convolution with clipped input and weights.

    Args:
        *args, **kwargs: Those of :class:`torch.nn.ConvTranspose2d` and of :class:`ClipMixin`.
    """

    padding: tuple[int, int]

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Float tensor ``(N, C, H, W)`` to ``(N, K, P, Q)``, or both without ``N``."""
        self._observe(x)
        x, weight, bias = self.autocast(x)
        extra = self._output_padding(
            x,
            output_size,
            list(self.stride),
            list(self.padding),
            list(self.kernel_size),
            2,
            list(self.dilation),
        )
        with torch.autocast(x.device.type, enabled=False):
            geometry = self.stride, self.padding, self.dilation, True, extra, self.groups
            return _convolve(self, x, weight, bias, geometry)


def _convolve(
    layer: ClipMixin, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple
) -> Tensor:
    exponents = layer.input_exponent, layer.weight_exponent
    if x.dim() == 3:
        return _ClipConvolution.apply(x[None], weight, bias, exponents, layer.rounded, geometry)[0]
    return _ClipConvolution.apply(x, weight, bias, exponents, layer.rounded, geometry)
