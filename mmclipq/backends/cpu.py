"""Codes by compiled operators on channels-last memory; copies and float steps by PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph import ir
from ..ops import elementwise
from ..ops.library import follow_torch_threads, why_unavailable
from ..ops.products import Product
from ..ops.roi_align import roi_align
from .base import register_backend
from .reference import ReferenceBackend, to_codes


@register_backend
class CpuBackend(ReferenceBackend):
    """Codes are int8 and uint8 tensors ``(N, C, H, W)`` that lie with channels last in memory.

    Threads are torch's. Several Python threads may run one backend at once.

    Raises:
        ClipQError: if the operators are not built, or the processor lacks VNNI.
    """

    name = 'cpu'

    def __init__(self, graph: ir.Int8Graph, *args: Any, **kwargs: Any) -> None:
        super().__init__(graph, *args, **kwargs)
        self._products = {
            node.name: Product(
                node,
                self.constants[node.weight],
                self.constants[node.multiplier],
                self.constants[node.bias],
                self.types[node.x].signed,
                None if node.residual is None else self.types[node.residual],
            )
            for node in graph.products()
        }

    @staticmethod
    def unavailable(device: str) -> str:
        if torch.device(device).type != 'cpu':
            return f'it runs on the CPU, not on {device}'
        return why_unavailable()

    def run(self, *inputs, observe=None):
        follow_torch_threads()
        return super().run(*inputs, observe=observe)

    def quantize(self, node, x):
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return to_codes(x, node.type)

    def requantize(self, node, x):
        return elementwise.requantize(node, x, self.types[node.x])

    def add(self, node, x, other):
        if x.shape != other.shape:  # broadcast
            return super().add(node, x, other)
        return elementwise.add(node, x, self.types[node.x], other, self.types[node.other])

    def maxpool(self, node, x):
        return elementwise.max_pool(node, x)

    def conv(self, node, x, residual=None):
        return self._product(node, x, residual)

    def linear(self, node, x, residual=None):
        return self._product(node, x, residual)

    def _product(self, node: ir.Product, x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None and not node.type.is_codes:
            residual = self.values_of(node.residual, residual)
        return self._products[node.name](x, residual)

    def roialign(self, node, *levels_and_rois):
        *levels, rois = levels_and_rois
        return roi_align(levels, self.types[node.levels[0]], rois, node)

    def upsample(self, node, x, like=None):
        # Whole factors are copies, several times faster than interpolating float32 values.
        height, width = x.shape[2:]
        if like is None:
            rows, columns = node.scale
        else:
            rows, columns = like.shape[2] / height, like.shape[3] / width
        if rows != int(rows) or columns != int(columns):
            return super().upsample(node, x, like)
        x = x.permute(0, 2, 3, 1)[:, :, None, :, None]
        x = x.expand(-1, -1, int(rows), -1, int(columns), -1).flatten(3, 4).flatten(1, 2)
        return x.permute(0, 3, 1, 2)
