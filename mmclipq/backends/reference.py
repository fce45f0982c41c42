"""The executable definition of the integer arithmetic, in plain PyTorch, on any device.

A code ``x`` of a tensor stands for ``(x - offset) * step``. For input codes ``x`` and weight codes
``w`` with the integer sum ``acc`` of ``(x - offset) * w``::

    v = float32(acc) * multiplier[c]        one float32 multiplication, rounded
    v = v + bias[c]                         one float32 addition, rounded, never fused
    v = v + float32(r - offset) * step      residual, if before the activation
    v = act(v)                              in the float32 operations of mmclipq.ops.activations
    v = v + float32(r - offset) * step      residual, if after the activation
    out = saturate(round_half_even(v / step) + offset)

The other nodes' arithmetic is that of their docstrings in :mod:`mmclipq.graph.nodes`. Every other
backend must give the same codes. RoIAlign is defined in :mod:`mmclipq.backends.roi_align`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..graph import ir
from ..ops.activations import activate
from ..ops.arithmetic import (
    average,
    channel_shape,
    conv_sum,
    conv_transpose_sum,
    finish,
    norm_factors,
    pool_sum,
    result,
    scaled,
    to_codes,
)
from .base import Backend, register_backend
from .roi_align import roi_align_average


@register_backend
class ReferenceBackend(Backend):
    """Plain PyTorch; codes are int8 and uint8 tensors in NCHW order."""

    name = 'reference'

    def quantize(self, node, x):
        return to_codes(x, node.type)

    def dequantize(self, node, x):
        return self.values_of(node.x, x)

    def requantize(self, node, x):
        return to_codes(self.values_of(node.x, x), node.type)

    def conv(self, node, x, residual=None):
        acc = conv_sum(self.integers_of(node.x, x), self.constants[node.weight].double(), node)
        if acc.is_cuda:  # its library may take transforms: integers but for a little noise
            acc.round_()
        return self._epilogue(node, acc, residual)

    def convtranspose(self, node, x, residual=None):
        weight = self.constants[node.weight].double()
        acc = conv_transpose_sum(self.integers_of(node.x, x), weight, node)
        if acc.is_cuda:
            acc.round_()
        return self._epilogue(node, acc, residual)

    def linear(self, node, x, residual=None):
        acc = F.linear(self.integers_of(node.x, x), self.constants[node.weight].double())
        return self._epilogue(node, acc, residual)

    def add(self, node, x, other):
        v = self.values_of(node.x, x) + self.values_of(node.other, other)
        return to_codes(activate(v, node.activation, node.slope), node.type)

    def activate(self, node, x):
        v = activate(self.values_of(node.x, x), node.activation, node.slope)
        return result(v, node.type)

    def mul(self, node, x, other):
        v = self.values_of(node.x, x) * self.values_of(node.other, other)
        return to_codes(activate(v, node.activation, node.slope), node.type)

    def avgpool(self, node, x):
        v = average(pool_sum(self.integers_of(node.x, x), node), node, *x.shape[2:])
        return to_codes(v * self.step_of(node.x), node.type)

    def affine(self, node, x):
        shape = channel_shape(x.dim())
        v = self.integers_of(node.x, x).float() * self.constants[node.multiplier].view(shape)
        v = v + self.constants[node.bias].view(shape)
        return result(activate(v, node.activation, node.slope), node.type)

    def groupnorm(self, node, x):
        q = self.integers_of(node.x, x)
        weight, bias = self.constants[node.weight], self.constants[node.bias]
        m, b = norm_factors(q, node, self.step_of(node.x), weight, bias)
        return result(activate(q.float() * m + b, node.activation, node.slope), node.type)

    layernorm = groupnorm

    def concat(self, node, *tensors):
        return torch.cat(tensors, 1)

    def maxpool(self, node, x):
        # float32 holds every code exactly, and pads with minus infinity.
        pooled = F.max_pool2d(
            x.float(), node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode
        )
        return pooled.to(x.dtype)

    def upsample(self, node, x, like=None):
        size = None if like is None else like.shape[2:]
        return F.interpolate(x.float(), size, node.scale, mode='nearest').to(x.dtype)

    def slice(self, node, x):
        (top, left), (down, right) = node.start, node.step
        return x[:, :, top::down, left::right]

    def flatten(self, node, x):
        return x.flatten(1)

    def roialign(self, node, *levels_and_rois):
        *levels, rois = levels_and_rois
        values = [self.values_of(n, level) for n, level in zip(node.levels, levels, strict=True)]
        return to_codes(roi_align_average(values, rois, node), node.type)

    def step_of(self, name: str) -> float:
        """Value between two codes of tensor ``name``."""
        return math.ldexp(1.0, self.types[name].step_exponent)

    def integers_of(self, name: str, codes: Tensor) -> Tensor:
        """Codes of tensor ``name`` less its offset, float64."""
        return codes.double().sub_(self.types[name].offset)

    def values_of(self, name: str, codes: Tensor) -> Tensor:
        """Float32 values that the codes of tensor ``name`` stand for."""
        return codes.float().sub_(self.types[name].offset).mul_(self.step_of(name))

    def _epilogue(self, node: ir.Product, acc: Tensor, residual: Tensor | None) -> Tensor:
        v = scaled(acc, self.constants[node.multiplier], self.constants[node.bias], node)
        return self._finish(node, v, residual)

    def _finish(self, node: ir.Product, v: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None or node.residual is None:
            return finish(v, node, None)
        added = self.values_of(node.residual, residual)
        return finish(v, node, added)
