"""Runs the graph on dequantized float64 values instead of codes, as a check of the reference.

Steps are powers of two, so scaling commutes with every rounding and the values are exactly the
codes of the reference times their steps. This backend never sees an integer product: it multiplies
values as training does, and tests compare the codes of its results with the reference's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import fixed_point as fp
from ..ops.arithmetic import conv_sum, conv_transpose_sum, per_channel, to_codes
from .base import register_backend
from .reference import ReferenceBackend


@register_backend
class SimulatedBackend(ReferenceBackend):
    """Codes live as the float64 values that they stand for."""

    name = 'simulated'

    def as_codes(self, node, result):
        return to_codes(result.float(), node.type)

    def from_codes(self, node, codes):
        kind = node.type
        return fp.decode(codes, kind.exponent, dtype=torch.float64, offset=kind.offset)

    def quantize(self, node, x):
        return self._as_values(node, to_codes(x, node.type))

    def dequantize(self, node, x):
        return x.float()

    def requantize(self, node, x):
        return self.quantize(node, x.float())

    def conv(self, node, x, residual=None):
        return self._scaled(node, conv_sum(x, self._weight(node), node), residual)

    def convtranspose(self, node, x, residual=None):
        return self._scaled(node, conv_transpose_sum(x, self._weight(node), node), residual)

    def linear(self, node, x, residual=None):
        return self._scaled(node, F.linear(x, self._weight(node)), residual)

    def add(self, node, x, other):
        return self._as_values(node, super().add(node, x, other))

    def activate(self, node, x):
        return self._as_values(node, super().activate(node, x))

    def mul(self, node, x, other):
        return self._as_values(node, super().mul(node, x, other))

    def avgpool(self, node, x):
        return self._as_values(node, super().avgpool(node, x))

    def affine(self, node, x):
        return self._as_values(node, super().affine(node, x))

    def groupnorm(self, node, x):
        return self._as_values(node, super().groupnorm(node, x))

    layernorm = groupnorm

    def maxpool(self, node, x):
        return F.max_pool2d(
            x, node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode
        )

    def upsample(self, node, x, like=None):
        size = None if like is None else like.shape[2:]
        return F.interpolate(x, size, node.scale, mode='nearest')

    def roialign(self, node, *levels_and_rois):
        return self._as_values(node, super().roialign(node, *levels_and_rois))

    def integers_of(self, name, codes):
        return codes / self.step_of(name)

    def values_of(self, name, codes):
        return codes.float()

    def _as_values(self, node, result: Tensor) -> Tensor:
        """Values of codes; float32 results stay."""
        return self.from_codes(node, result) if node.type.is_codes else result

    def _weight(self, node):
        codes, exponents = self.constants[node.weight], self.constants[node.exponents]
        return fp.decode(codes, exponents, axis=0, dtype=torch.float64)

    def _scaled(self, node, sums, residual):
        """Epilogue on real-valued sums: the steps are already inside, only the norm is left."""
        steps = fp.step_exponent(self.constants[node.exponents]) + self.types[node.x].step_exponent
        norm = self.constants[node.multiplier] / fp.power_of_two(steps)
        v = sums.float() * per_channel(norm, node) + per_channel(self.constants[node.bias], node)
        return self._as_values(node, self._finish(node, v, residual))
