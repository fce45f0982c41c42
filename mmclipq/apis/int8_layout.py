"""What stands where in a ``.clipq`` file: whether graphs, config and meta data fit each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..detector import Int8Module, Int8Parts
from ..errors import ClipQError
from ..graph.artifact import Artifact, ArtifactError
from ..graph.ir import GraphError, Input, Int8Graph, Ref, iter_refs
from ..graph.limits import Limits
from ..graph.signature import input_name, is_form
from .file_config import check_config, check_pipeline

_HEADS = (None, 'rpn_head', 'bbox_head')
_MOST_CLASSES = 1 << 17


def _has(value: Any, path: str | os.PathLike, what: str, kind: type, inner: type | None) -> None:
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, kind) or (
        inner is not None and not all(isinstance(item, inner) for item in items)
    ):
        raise ArtifactError(f'{path}: found {what}={str(value)[:60]}, wanted {kind.__name__}')


def check_content(artifact: Artifact, path: str | os.PathLike, limits: Limits) -> None:
    """Return if config and meta data of a file have the types that their readers expect.

    Raises:
        ArtifactError: naming the file and the entry.
        LimitError: if its pipeline makes images that are too large.
    """
    config, meta = artifact.config, artifact.meta
    for key, kind, inner in (
        ('model', dict, None), ('pipeline', list, dict), ('captured', list, str),
        ('left', dict, str), ('clipq', dict, None),
    ):  # fmt: skip
        if key in config or key in ('model', 'captured'):
            _has(config.get(key), path, key, kind, inner)
    if config.get('head') not in _HEADS:
        raise ArtifactError(f'{path}: found the head {config["head"]!r}, wanted one of {_HEADS}')
    check_config(config['model'], path, 'model')
    check_pipeline(config.get('pipeline', []), path, limits)
    for key, most in (('classes', _MOST_CLASSES), ('palette', _MOST_CLASSES)):
        value = meta.get(key, ())
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise ArtifactError(f'{path}: found {key} that are no list, wanted one')
    if not all(isinstance(name, str) and len(name) < 1000 for name in meta.get('classes', ())):
        raise ArtifactError(f'{path}: found classes that are no names, wanted texts')
    for colour in meta.get('palette', ()):
        if not isinstance(colour, (list, tuple)) or not all(type(v) is int for v in colour):
            raise ArtifactError(f'{path}: found the colour {colour!r}, wanted three numbers')


def check_parts(parts: Int8Parts) -> None:
    """Return if the parts have the inputs and outputs that a detector calls them with.

    Raises:
        GraphError: telling which part has not.
    """

    def inputs(graph: Int8Graph) -> list[Input]:
        return [node for node in graph.nodes if isinstance(node, Input)]

    levels: list[Any] = []
    if parts.graph is not None:
        outputs = parts.graph.outputs
        if not isinstance(outputs, dict) or not outputs or outputs.keys() - {'features', 'head'}:
            raise GraphError('dense part: found outputs that are not features and head alone')
        if len(inputs(parts.graph)) != 1 or inputs(parts.graph)[0].type.is_codes:
            raise GraphError('dense part: found other inputs than one float32 image, wanted that')
        if ('head' in outputs) != (parts.head is not None):
            raise GraphError(f'dense part: found the head {parts.head!r} and no outputs that fit')
        levels = outputs.get('features', ())
        if not isinstance(levels, (tuple, list)) or not all(isinstance(r, Ref) for r in levels):
            raise GraphError('dense part: found features that are no list, wanted tensors')
    for index, graph in enumerate(parts.boxes):
        found, outputs = inputs(graph), graph.outputs
        pair = isinstance(outputs, (tuple, list)) and len(outputs) == 2
        if not found or len(found) - 1 > len(levels) or found[-1].type.is_codes or not pair:
            raise GraphError(f'boxes {index}: found other inputs or outputs than levels, regions, '
                             'scores and deltas')  # fmt: skip
        for node, ref in zip(found[:-1], levels, strict=False):
            if parts.graph is None or node.type != parts.graph.tensors[ref.name]:
                raise GraphError(f'boxes {index}: found {node.name} of {node.type}, wanted the '
                                 'type of the features')  # fmt: skip
    for module in parts.modules:
        names = [node.name for node in inputs(module.graph)]
        count = sum(1 for _ in iter_refs(module.form))
        if names != [input_name(index) for index in range(count)]:
            raise GraphError(f'{module.path}: found inputs {names[:8]}, wanted {count} in order')


def _layout(artifact: Artifact) -> dict[str, Any]:
    """Which graph is what; files of format version 2 hold the dense one and those of the boxes."""
    count = len(artifact.graphs)
    layout = artifact.config.get('parts', {'dense': True, 'boxes': count - 1, 'modules': []})
    if not isinstance(layout, dict) or set(layout) != {'dense', 'boxes', 'modules'}:
        raise ArtifactError(f'found parts={str(layout)[:60]}, wanted dense, boxes and modules')
    dense, boxes, modules = layout['dense'], layout['boxes'], layout['modules']
    whole = isinstance(dense, bool) and type(boxes) is int and isinstance(modules, list)
    if not whole or boxes < 0 or dense + boxes + len(modules) != count:
        raise ArtifactError(f'found {count} graphs, wanted as many as parts={str(layout)[:60]}')
    for entry in modules:
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or not is_form(entry[1]):
            raise ArtifactError(f'found the module {str(entry)[:60]}, wanted a path and a call')
    return layout


def read_parts(artifact: Artifact, path: str | os.PathLike) -> Int8Parts:
    """The graphs of a file, each where it belongs.

    Raises:
        ArtifactError: naming the file and what does not fit.
    """
    config, graphs = artifact.config, list(artifact.graphs)
    try:
        layout = _layout(artifact)
        dense = graphs.pop(0) if layout['dense'] else None
        boxes, graphs = graphs[: layout['boxes']], graphs[layout['boxes'] :]
        modules = [
            Int8Module(module, form, graph)
            for (module, form), graph in zip(layout['modules'], graphs, strict=True)
        ]
        _has(config.get('captured'), path, 'captured', list, str)
        parts = Int8Parts(
            dense, config.get('head'), config['captured'], tuple(boxes), tuple(modules)
        )
        check_parts(parts)
    except ClipQError as error:
        raise ArtifactError(f'{path}: {error}') from error
    return parts
