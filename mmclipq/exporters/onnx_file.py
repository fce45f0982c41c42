"""Integer graphs as ONNX models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from ..graph import ir
from .builder import DEFAULT_IR, DEFAULT_OPSET, OnnxBuilder
from .placement import check_placement
from .qdq import QdqWriter, leaves_by_name
from .targets import DEFAULT_TARGET, target_of


def dtype_of(kind: ir.TensorType) -> Any:
    """NumPy dtype of a tensor."""
    if not kind.is_codes:
        return np.float32
    return np.int8 if kind.signed else np.uint8


_SAME_COLUMNS = (
    ir.Quantize, ir.Dequantize, ir.Requantize, ir.Add, ir.Mul, ir.Activate, ir.Affine, ir.Normalize,
)  # fmt: skip


def input_shapes(
    graph: ir.Int8Graph, ranks: Mapping[str, int] | None = None
) -> dict[str, list[Any]]:
    """Shape of each input with names for free sizes.

    Args:
        graph: The graph.
        ranks: Number of axes of inputs by name; without, regions ``(K, 5)`` and what linear layers
            read have two, images four.
    """
    ranks = ranks or {}
    columns: dict[str, int] = {}  # of tensors that are rows
    # Nodes behind tell what those before them must be.
    for node in reversed(graph.nodes):
        if isinstance(node, ir.Linear):
            columns[node.x] = graph.constants[node.weight].shape[1]
        elif isinstance(node, ir.RoIAlign):
            columns[node.rois] = 5
        elif node.name in columns and isinstance(node, _SAME_COLUMNS):
            for name in node.inputs:
                columns[name] = columns[node.name]
    shapes: dict[str, list[Any]] = {}
    for node in graph.nodes:
        if not isinstance(node, ir.Input):
            continue
        if ranks.get(node.name, 2 if node.name in columns else 4) not in (2, 4):
            axes = range(1, ranks[node.name])
            shapes[node.name] = ['batch', *(f'{node.name}_axis{axis}' for axis in axes)]
        elif ranks.get(node.name, 2) == 2 and node.name in columns:
            rows = 'regions' if columns[node.name] == 5 else 'rows'
            shapes[node.name] = [rows, columns[node.name]]
        elif ranks.get(node.name) == 2:
            shapes[node.name] = ['rows', None]
        elif node.type.is_codes:
            shapes[node.name] = ['batch', None, f'{node.name}_height', f'{node.name}_width']
        else:
            shapes[node.name] = ['batch', None, 'height', 'width']
    return shapes


def graph_model(
    graph: ir.Int8Graph,
    islands: nn.Module | None = None,
    *,
    target: str = DEFAULT_TARGET,
    opset: int = DEFAULT_OPSET,
    ir_version: int = DEFAULT_IR,
    metadata: dict[str, str] | None = None,
    all_codes: bool = False,
    ranks: Mapping[str, int] | None = None,
) -> Any:
    """One graph as an ONNX ``ModelProto``, checked; batch and image size are dynamic.

    Args:
        graph: The graph. Inputs and outputs that are codes stay codes.
        islands: The detector whose modules float steps name.
        target: What runs the file, see :mod:`mmclipq.exporters.targets`.
        opset: Version of the operator set.
        ir_version: Version of the file format.
        metadata: Strings by key.
        all_codes: Also give the codes of every tensor, named as in the graph.
        ranks: Number of axes of inputs, as for :func:`input_shapes`.

    Raises:
        ExportError: if a step has no ONNX form, naming it, or for a version out of range.
    """
    g = OnnxBuilder(opset, ir_version)
    read = {name for node in graph.nodes for name in node.inputs}
    read |= {ref.name for ref in ir.iter_refs(graph.outputs)}
    shapes = input_shapes(graph, ranks)
    kind_of = target_of(target).type_of
    # What nothing reads is no input of the model, because no runtime could tell its shape.
    inputs = [
        g.input(node.name, dtype_of(kind_of(node.type)), shapes[node.name])
        if node.name in read
        else ''
        for node in graph.nodes
        if isinstance(node, ir.Input)
    ]
    writer = QdqWriter(g, target, islands)
    writer.add(graph, inputs)
    types = {name: kind_of(kind) for name, kind in graph.tensors.items()}
    for name, ref in leaves_by_name(graph.outputs).items():
        g.output(writer.plain(ref.name), name, dtype_of(types[ref.name]), None)
    if all_codes:
        for name, kind in types.items():
            if kind.is_codes:
                g.output(writer.plain(name), f'codes:{name}', dtype_of(kind), None)
    model = g.model(metadata or {})
    if target_of(target).fuses:
        check_placement(model, target_of(target).unsigned, writer.rounded)
    return model
