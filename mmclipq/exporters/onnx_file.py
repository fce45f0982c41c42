"""Integer graphs as ONNX models."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..graph import ir
from .builder import DEFAULT_IR, DEFAULT_OPSET, OnnxBuilder
from .placement import check_placement
from .qdq import QdqWriter, refs_by_name


def dtype_of(kind: ir.TensorType) -> Any:
    """NumPy dtype of a tensor."""
    if not kind.is_codes:
        return np.float32
    return np.int8 if kind.signed else np.uint8


def input_shape(graph: ir.Int8Graph, node: ir.Input) -> list[Any]:
    """Shape of an input with names for dynamic sizes; regions are ``(K, 5)``."""
    if any(isinstance(n, ir.RoIAlign) and n.rois == node.name for n in graph.nodes):
        return ['regions', 5]
    if any(isinstance(n, ir.Linear) and n.x == node.name for n in graph.nodes):
        return ['rows', _columns(graph, node)]
    if node.type.is_codes:
        return ['batch', None, f'{node.name}_height', f'{node.name}_width']
    return ['batch', None, 'height', 'width']


def _columns(graph: ir.Int8Graph, node: ir.Input) -> int:
    reader = next(n for n in graph.nodes if isinstance(n, ir.Linear) and n.x == node.name)
    return graph.constants[reader.weight].shape[1]


def graph_model(
    graph: ir.Int8Graph,
    islands: nn.Module | None = None,
    *,
    placement: str = 'tensorrt',
    opset: int = DEFAULT_OPSET,
    ir_version: int = DEFAULT_IR,
    metadata: dict[str, str] | None = None,
    all_codes: bool = False,
) -> Any:
    """One graph as an ONNX ``ModelProto``, checked; batch and image size are dynamic.

    Args:
        graph: The graph. Inputs and outputs that are codes stay codes.
        islands: The detector whose modules float steps name.
        placement: Where QuantizeLinear stands, see :mod:`mmclipq.exporters.qdq`.
        opset: Version of the operator set.
        ir_version: Version of the file format.
        metadata: Strings by key.
        all_codes: Also give the codes of every tensor, named as in the graph.

    Raises:
        ExportError: if a step has no ONNX form, naming it, or for a version out of range.
    """
    g = OnnxBuilder(opset, ir_version)
    inputs = [
        g.input(node.name, dtype_of(node.type), input_shape(graph, node))
        for node in graph.nodes
        if isinstance(node, ir.Input)
    ]
    writer = QdqWriter(g, placement, islands)
    writer.add(graph, inputs)
    types = graph.tensors
    for name, ref in refs_by_name(graph.outputs).items():
        g.output(writer.plain(ref.name), name, dtype_of(types[ref.name]), None)
    if all_codes:
        for name, kind in types.items():
            if kind.is_codes:
                g.output(writer.plain(name), f'codes:{name}', dtype_of(kind), None)
    model = g.model(metadata or {})
    if placement == 'tensorrt':
        check_placement(model)
    return model
