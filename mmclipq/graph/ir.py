"""``Int8Graph``: the one contract between those who train and those who deploy.

A graph is a list of nodes in execution order over named tensors. A tensor holds int8 or uint8
codes of one power-of-two range, or float32 values. Each node defines one tensor of its own name.
The arithmetic of every kind of node is that of the reference backend, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .nodes import (
    NODE_KINDS,
    Activate,
    Activated,
    Add,
    AvgPool,
    Concat,
    Dequantize,
    Flatten,
    FloatCall,
    Input,
    MaxPool,
    Mul,
    Quantize,
    Requantize,
    RoIAlign,
    Slice,
    Upsample,
    iter_refs,
    map_refs,
)
from .norms import (
    Affine,
    GroupNorm,
    LayerNorm,
    Normalize,
)
from .products import (
    Conv,
    ConvTranspose,
    Linear,
    Product,
)
from .types import (
    ACTIVATIONS,
    FLOAT,
    OFFSETS,
    GraphError,
    Node,
    Ref,
    TensorType,
)
from .validate import validate

__all__ = [
    'Int8Graph',
    'ACTIVATIONS',
    'FLOAT',
    'OFFSETS',
    'LayerNorm',
    'GroupNorm',
    'Normalize',
    'Affine',
    'AvgPool',
    'Mul',
    'Activate',
    'Activated',
    'NODE_KINDS',
    'Add',
    'Concat',
    'Conv',
    'ConvTranspose',
    'Dequantize',
    'Flatten',
    'FloatCall',
    'GraphError',
    'Input',
    'Linear',
    'MaxPool',
    'Node',
    'Product',
    'Quantize',
    'Ref',
    'Requantize',
    'RoIAlign',
    'Slice',
    'TensorType',
    'Upsample',
    'iter_refs',
    'map_refs',
]


@dataclass(frozen=True)
class Int8Graph:
    """Nodes in execution order, their constants, and the structure of the outputs.

    Attributes:
        nodes: Each node reads only tensors that earlier nodes define.
        outputs: Nested tuples, lists and dicts with :class:`Ref` leaves.
        constants: Weight codes (int8), their exponents (int32), multipliers and biases (float32)
            by key.
    """

    nodes: tuple[Node, ...]
    outputs: Any
    constants: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        validate(self.nodes, self.outputs, self.constants)

    @property
    def tensors(self) -> dict[str, TensorType]:
        """Type of every tensor by name, in order of definition."""
        return {node.name: node.type for node in self.nodes}

    @property
    def islands(self) -> dict[str, str]:
        """Name and reason of every step that runs in float32."""
        return {
            node.name: node.reason
            for node in self.nodes
            if isinstance(node, FloatCall) and node.reason
        }

    def last_reads(self) -> list[list[str]]:
        """For each node the tensors that nothing reads after it, the outputs included."""
        kept = {ref.name for ref in iter_refs(self.outputs)}
        last: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            last.update(dict.fromkeys((*node.inputs, node.name), index))
        ends: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last.items():
            if name not in kept:
                ends[index].append(name)
        return ends

    def products(self) -> list[Product]:
        """The convolutions and linear layers, in execution order."""
        return [node for node in self.nodes if isinstance(node, Product)]
