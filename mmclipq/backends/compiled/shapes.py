"""Shapes of the tensors of a part of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ...graph import ir
from ...ops.arithmetic import pool_counts


class Unplannable(Exception):
    """A node that no step does at these shapes.

    Attributes:
        node: The node.
    """

    def __init__(self, node: ir.Node) -> None:
        super().__init__(node.name)
        self.node = node


def kind_of(node: ir.Node) -> str:
    """What methods for such nodes are called after."""
    return type(node).__name__.lower()


class Shapes:
    """Shape of every tensor of a part.

    Args:
        nodes: The part in execution order.
        products: Its layers by name.
        inputs: Shape of each tensor read from outside.

    Attributes:
        shapes: By name.

    Raises:
        Unplannable: if no step does a node at these shapes.
    """

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        products: Mapping[str, Any],
        inputs: Mapping[str, Sequence[int]],
    ) -> None:
        self._products = products
        self.shapes: dict[str, tuple[int, ...]] = dict(inputs)
        for node in nodes:
            self.shapes[node.name] = tuple(getattr(self, f'_{kind_of(node)}_shape')(node))

    def _same_shape(self, node: ir.Node) -> Sequence[int]:
        return self.shapes[node.x]

    _quantize_shape = _dequantize_shape = _requantize_shape = _activate_shape = _same_shape

    def _affine_shape(self, node: ir.Affine | ir.Normalize) -> Sequence[int]:
        shape = self.shapes[node.x]
        if len(shape) == 4 or len(shape) == 2 or not isinstance(node, ir.GroupNorm):
            return shape
        raise Unplannable(node)  # channels first in memory

    _groupnorm_shape = _layernorm_shape = _affine_shape

    def _product_shape(self, node: ir.Product) -> Sequence[int]:
        return self._products[node.name].result_shape(self.shapes[node.x])

    _conv_shape = _linear_shape = _product_shape

    def _add_shape(self, node: ir.Add | ir.Mul) -> Sequence[int]:
        a, b = self.shapes[node.x], self.shapes[node.other]
        if a != b and not len(a) == len(b) == 4:
            raise Unplannable(node)
        return tuple(torch.broadcast_shapes(a, b))

    _mul_shape = _add_shape

    def _avgpool_shape(self, node: ir.AvgPool) -> Sequence[int]:
        images, channels, *sides = self.shapes[node.x]
        return (images, channels, *(len(counts) for counts in pool_counts(node, *sides)))

    def _concat_shape(self, node: ir.Concat) -> Sequence[int]:
        shapes = [self.shapes[name] for name in node.tensors]
        if len(shapes[0]) not in (2, 4):
            raise Unplannable(node)
        return (shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:])

    def _maxpool_shape(self, node: ir.MaxPool) -> Sequence[int]:
        images, channels, *sides = self.shapes[node.x]
        # PyTorch's own rules give the size; a tensor without memory makes that free.
        pooled = F.max_pool2d(
            torch.empty(1, 1, *sides, device='meta'), node.kernel, node.stride, node.padding,
            node.dilation, node.ceil_mode,
        )  # fmt: skip
        return (images, channels, *pooled.shape[2:])

    def _upsample_shape(self, node: ir.Upsample | ir.Slice) -> Sequence[int]:
        return (*self.shapes[node.x][:2], *(len(rows) for rows in self._sources(node)))

    _slice_shape = _upsample_shape

    def _flatten_shape(self, node: ir.Flatten) -> Sequence[int]:
        shape = self.shapes[node.x]
        return (shape[0], math.prod(shape[1:]))

    def _roialign_shape(self, node: ir.RoIAlign) -> Sequence[int]:
        channels = self.shapes[node.levels[0]][1]
        return (self.shapes[node.rois][0], channels, *node.output_size)

    def _sources(self, node: ir.Upsample | ir.Slice) -> list[torch.Tensor]:
        """Number of the source of each row and of each column of the result, int64."""
        sources = []
        for axis, size in enumerate(self.shapes[node.x][2:]):
            if isinstance(node, ir.Slice):
                sources.append(torch.arange(size)[node.start[axis] :: node.step[axis]].contiguous())
                continue
            # PyTorch's own rules, along one axis; float32 holds these numbers exactly.
            line = torch.arange(size, dtype=torch.float32).view(1, 1, -1, 1)
            if node.like is None:
                line = F.interpolate(line, scale_factor=(node.scale[axis], 1.0), mode='nearest')
            else:
                line = F.interpolate(line, (self.shapes[node.like][2 + axis], 1), mode='nearest')
            sources.append(line.flatten().long())
        return sources
