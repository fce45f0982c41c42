"""A graph whose every step reads given codes, to tell its own differences from inherited ones."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..graph import ir


def _reading(node: ir.Node, names: dict[str, str]) -> ir.Node:
    """``node`` with the tensors that it reads called as ``names`` says."""
    if isinstance(node, ir.FloatCall):
        args, kwargs = ir.map_refs(
            (node.args, dict(node.kwargs)), lambda ref: ir.Ref(names.get(ref.name, ref.name))
        )
        return dataclasses.replace(node, args=args, kwargs=tuple(kwargs.items()))
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if field.name in ('x', 'other', 'residual', 'like', 'rois'):
            changed[field.name] = names.get(value, value)
        elif field.name in ('tensors', 'levels'):
            changed[field.name] = tuple(names.get(name, name) for name in value)
    return dataclasses.replace(node, **changed)


def isolated(graph: ir.Int8Graph) -> ir.Int8Graph:
    """``graph`` with one more input for each tensor of codes, which all steps read in its place.

    The inputs are those of ``graph``, then one for each further tensor of codes in order. The
    outputs are the codes of these tensors by name.
    """
    own = [node for node in graph.nodes if isinstance(node, ir.Input)]
    inner = [node for node in graph.nodes if not isinstance(node, ir.Input)]
    codes = [node for node in inner if node.type.is_codes]
    names = {node.name: f'{node.name}.given' for node in codes}
    given = [ir.Input(names[node.name], node.type) for node in codes]
    nodes = (*own, *given, *(_reading(node, names) for node in inner))
    outputs = {node.name: ir.Ref(node.name) for node in codes}
    return ir.Int8Graph(nodes, outputs, graph.constants)
