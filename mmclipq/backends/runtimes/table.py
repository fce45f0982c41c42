"""Executes the exported table of exponents as fixed-point hardware would: products in integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import fixed_point as fp
from ...exporters.table import SLOPE_BITS, product_entry
from ...graph import ir
from ...ops.arithmetic import per_channel
from ..base import register_backend
from ..reference import ReferenceBackend


@register_backend
class TableBackend(ReferenceBackend):
    """Products by the table's mantissas, shifts and int32 biases, with one rounding half up.

    Sums are int64 in units of ``2**-shift`` output steps, whose limit no entry can reach: a sum of
    32 bits times a mantissa of 31. Products with float32 results are the reference's.
    """

    name = 'table'

    def __init__(self, graph, islands=None, device='cpu'):
        super().__init__(graph, islands, device)
        self._entries: dict[str, dict[str, Any]] = {
            node.name: product_entry(graph, node) for node in graph.products()
        }

    def _per_channel(self, node: ir.Product, key: str) -> Tensor:
        values = torch.tensor(self._entries[node.name][key], device=self.device)
        return per_channel(values, node)

    def _epilogue(self, node, acc, residual):
        if not node.type.is_codes:
            return super()._epilogue(node, acc, residual)
        shift = self._per_channel(node, 'shift')
        v = (acc.long() + self._per_channel(node, 'bias')) * self._per_channel(node, 'mantissa')
        if residual is not None:
            relative = self.types[node.residual].step_exponent - node.type.step_exponent
            added = residual.long() << (shift + relative)
        if residual is not None and not node.residual_last:
            v = v + added
        v = self._activated(node, v, shift)
        if residual is not None and node.residual_last:
            v = v + added
        rounded = (v + (torch.ones_like(shift) << (shift - 1))) >> shift
        return rounded.clamp_(*fp.code_range(node.type.signed)).to(fp.code_dtype(node.type.signed))

    def _activated(self, node: ir.Product, v: Tensor, shift: Tensor) -> Tensor:
        if node.activation in ('relu', 'relu6'):
            v = v.clamp(min=0)
        if node.activation == 'relu6':
            # 6 in output steps is a whole number unless the steps are larger than 2.
            six = torch.round(
                torch.ldexp(torch.tensor(6.0), torch.tensor(-node.type.step_exponent))
            )
            v = torch.minimum(v, six.long() << shift)
        if node.activation == 'leaky_relu':
            slope = self._entries[node.name]['slope']
            v = torch.where(v < 0, (v >> SLOPE_BITS) * slope, v)
        return v
