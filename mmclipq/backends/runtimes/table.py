"""Executes the exported table of exponents as fixed-point hardware would: in integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import fixed_point as fp
from ...exporters.curve_tables import FINE_BITS, activated_codes, curve_of
from ...exporters.table import BIAS_BITS, SLOPE_BITS, affine_entry, product_entry
from ...graph import ir
from ...ops.arithmetic import channel_shape, per_channel, pool_counts, pool_sum
from ..base import register_backend
from ..reference import ReferenceBackend


def _shifted(v: Tensor, shift: Tensor) -> Tensor:
    """``v * 2**-shift`` of int64, rounded half up."""
    half = torch.where(shift > 0, torch.ones_like(shift) << (shift - 1).clamp(min=0), 0)
    return ((v + half) >> shift.clamp(min=0)) << (-shift).clamp(min=0)


@register_backend
class TableBackend(ReferenceBackend):
    """Products by the table's mantissas, shifts and int32 biases, with one rounding half up.

    Sums are int64 in units of ``2**-shift`` output steps, whose limit no entry can reach: a sum of
    32 bits times a mantissa of 31. What the table leaves in float32 is the reference's.
    """

    name = 'table'

    def __init__(self, graph, islands=None, device='cpu'):
        super().__init__(graph, islands, device)
        self._entries: dict[str, dict[str, Any]] = {
            node.name: product_entry(graph, node) for node in graph.products()
        }
        for node in graph.nodes:
            if isinstance(node, ir.Affine) and node.type.is_codes:
                self._entries[node.name] = affine_entry(graph, node)
        self._curves = {node.name: curve_of(graph, node) for node in graph.nodes}
        self._codes = {
            node.name: torch.tensor(activated_codes(graph, node), device=self.device)
            for node in graph.nodes
            if isinstance(node, ir.Activate) and node.type.is_codes
        }

    def _values(self, node: ir.Node, key: str) -> Tensor:
        return torch.tensor(self._entries[node.name][key], device=self.device)

    def _epilogue(self, node, acc, residual):
        if not node.type.is_codes:
            return super()._epilogue(node, acc, residual)
        shift, bias, mantissa = (
            per_channel(self._values(node, key), node) for key in ('shift', 'bias', 'mantissa')
        )
        v = (acc.long() + bias) * mantissa
        if residual is not None:
            kind = self.types[node.residual]
            relative = kind.step_exponent - node.type.step_exponent
            added = (residual.long() - kind.offset) << (shift + relative)
        if residual is not None and not node.residual_last:
            v = v + added
        v = self._activated(node, v, shift)
        if residual is not None and node.residual_last:
            v = v + added
        return self._rounded(node, v, shift)

    def affine(self, node, x):
        if not node.type.is_codes:
            return super().affine(node, x)
        shift, bias, mantissa = (
            self._values(node, key).view(channel_shape(x.dim()))
            for key in ('shift', 'bias', 'mantissa')
        )
        v = self.integers_of(node.x, x).long() * mantissa
        v = v + _shifted(bias, BIAS_BITS - shift)
        return self._rounded(node, self._activated(node, v, shift), shift)

    def activate(self, node, x):
        if not node.type.is_codes:
            return super().activate(node, x)
        lowest = fp.code_range(self.types[node.x].signed)[0]
        codes = self._codes[node.name][x.long() - lowest]
        return codes.to(fp.code_dtype(node.type.signed))

    def avgpool(self, node, x):
        heights, widths = pool_counts(node, *x.shape[2:])
        count = (heights[:, None] * widths).long().to(self.device)
        acc = pool_sum(self.integers_of(node.x, x), node).long()
        relative = self.types[node.x].step_exponent - node.type.step_exponent
        acc, count = acc << max(relative, 0), count << max(-relative, 0)
        codes = torch.div(2 * acc + count, 2 * count, rounding_mode='floor')
        return self._saturated(node, codes)

    def add(self, node, x, other):
        if self._curves[node.name] is None:
            return super().add(node, x, other)
        return self._bent(node, self.values_of(node.x, x) + self.values_of(node.other, other))

    def mul(self, node, x, other):
        if self._curves[node.name] is None:
            return super().mul(node, x, other)
        return self._bent(node, self.values_of(node.x, x) * self.values_of(node.other, other))

    def _bent(self, node: ir.Node, v: Tensor) -> Tensor:
        """Codes of the smooth activation of ``v``, exact float32 values."""
        fine = torch.floor(v.double() * 2.0 ** (FINE_BITS - node.type.step_exponent) + 0.5)
        shift = torch.tensor(FINE_BITS, device=self.device)
        return self._rounded(node, self._activated(node, fine.long(), shift), shift)

    def _rounded(self, node: ir.Node, v: Tensor, shift: Tensor) -> Tensor:
        return self._saturated(node, _shifted(v, shift))

    def _saturated(self, node: ir.Node, codes: Tensor) -> Tensor:
        codes = (codes + node.type.offset).clamp_(*fp.code_range(node.type.signed))
        return codes.to(fp.code_dtype(node.type.signed))

    def _activated(self, node: Any, v: Tensor, shift: Tensor) -> Tensor:
        """Activation of int64 in units of ``2**-shift`` output steps."""
        if (curve := self._curves[node.name]) is not None:
            fine = curve(_shifted(v, shift - FINE_BITS).cpu().numpy())
            return _shifted(torch.from_numpy(fine).to(v.device), FINE_BITS - shift)
        if node.activation in ('relu', 'relu6'):
            v = v.clamp(min=0)
        if node.activation == 'relu6':
            # 6 in output steps is a whole number unless the steps are larger than 2.
            six = torch.round(
                torch.ldexp(torch.tensor(6.0), torch.tensor(-node.type.step_exponent))
            )
            v = torch.minimum(v, six.long() << shift)
        if node.activation == 'leaky_relu':
            slope = round(node.slope * 2**SLOPE_BITS)
            v = torch.where(v < 0, (v >> SLOPE_BITS) * slope, v)
        return v
