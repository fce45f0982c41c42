"""The executable definition of the integer arithmetic, in plain PyTorch, on any device.

For input codes ``x`` and weight codes ``w`` with the integer sum ``acc``::

    v = float32(acc) * multiplier[c]        one float32 multiplication, rounded
    v = v + bias[c]                         one float32 addition, rounded, never fused
    v = v + float32(r) * 2**step            residual, if before the activation
    v = act(v)                              leaky_relu: one multiplication of negative values
    v = v + float32(r) * 2**step            residual, if after the activation
    out = saturate(round_half_even(v / 2**step))

Every other backend must give the same codes. RoIAlign is defined in
:mod:`mmclipq.backends.roi_align`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..graph import ir
from ..ops.arithmetic import activate, conv_sum, finish, scaled, to_codes
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
        acc = conv_sum(x.double(), self.constants[node.weight].double(), node)
        if acc.is_cuda:  # its library may take transforms: integers but for a little noise
            acc.round_()
        return self._epilogue(node, acc, residual)

    def linear(self, node, x, residual=None):
        acc = F.linear(x.double(), self.constants[node.weight].double())
        return self._epilogue(node, acc, residual)

    def add(self, node, x, other):
        v = self.values_of(node.x, x) + self.values_of(node.other, other)
        return to_codes(activate(v, node.activation, node.slope), node.type)

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

    def flatten(self, node, x):
        return x.flatten(1)

    def roialign(self, node, *levels_and_rois):
        *levels, rois = levels_and_rois
        values = [self.values_of(n, level) for n, level in zip(node.levels, levels, strict=True)]
        return to_codes(roi_align_average(values, rois, node), node.type)

    def values_of(self, name: str, codes: Tensor) -> Tensor:
        """Float32 values that the codes of tensor ``name`` stand for."""
        return codes.float().mul_(math.ldexp(1.0, self.types[name].step_exponent))

    def _epilogue(self, node: ir.Product, acc: Tensor, residual: Tensor | None) -> Tensor:
        v = scaled(acc, self.constants[node.multiplier], self.constants[node.bias], node)
        return self._finish(node, v, residual)

    def _finish(self, node: ir.Product, v: Tensor, residual: Tensor | None) -> Tensor:
        added = None if residual is None else self.values_of(node.residual, residual)
        return finish(v, node, added)
