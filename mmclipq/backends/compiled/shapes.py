"""Shapes of the tensors of a part of a graph that a program can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...graph import ir
from ...graph.shapes import product_shape, result_shape


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
        constants: Those of the graph.
        inputs: Shape of each tensor read from outside.

    Attributes:
        shapes: By name.

    Raises:
        Unplannable: if no step does a node at these shapes.
        GraphError: if a node cannot read tensors of these shapes at all.
    """

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        constants: Mapping[str, Tensor],
        inputs: Mapping[str, Sequence[int]],
    ) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {k: tuple(v) for k, v in inputs.items()}
        for node in nodes:
            self.shapes[node.name] = result_shape(node, self.shapes, constants)
            if not self._has_step(node, constants):
                raise Unplannable(node)

    def _has_step(self, node: ir.Node, constants: Mapping[str, Tensor]) -> bool:
        """Whether steps do the node at these shapes, not for its kind alone."""
        shapes = [self.shapes[name] for name in node.inputs]
        axes = len(shapes[0])
        if isinstance(node, (ir.Add, ir.Mul)):
            return shapes[0] == shapes[1] or axes == len(shapes[1]) == 4
        if isinstance(node, ir.Linear) and axes == 4:  # lies with its second axis last
            return False
        if isinstance(node, ir.Product) and node.residual is not None:
            weight = tuple(constants[node.weight].shape)
            return shapes[1] == product_shape(node, weight, shapes[0])
        if isinstance(node, (ir.Affine, ir.GroupNorm)):  # channels first in memory
            return axes in (2, 4) or not isinstance(node, ir.GroupNorm)
        if isinstance(node, ir.Concat):
            return axes in (2, 4)
        return True

    def _sources(self, node: ir.Upsample | ir.Slice) -> list[Tensor]:
        """Number of the source of each row and of each column of the result, int64."""
        sources = []
        for axis, size in enumerate(self.shapes[node.x][2:]):
            if isinstance(node, ir.Slice):
                sources.append(torch.arange(size)[node.start[axis] :: node.step[axis]].contiguous())
                continue
            # PyTorch's own rules, along one axis; float32 holds these numbers exactly.
            line = torch.arange(size, dtype=torch.float32).view(1, 1, -1, 1)
            if node.like is None:
                assert node.scale is not None  # a graph has one of the two
                line = F.interpolate(line, scale_factor=(node.scale[axis], 1.0), mode='nearest')
            else:
                line = F.interpolate(line, (self.shapes[node.like][2 + axis], 1), mode='nearest')
            sources.append(line.flatten().long())
        return sources
