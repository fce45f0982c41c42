"""The ``.clipq`` file: graph, constants, detector config and class names in one checked file.

Its layout is that of :mod:`mmclipq.graph.container`. Nothing in it is executed or unpickled on
reading.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..version import __version__
from . import ir
from .codes import CoderError
from .container import (
    MAGIC,
    ArtifactError,
    pack,
    read_body,
    read_header,
    read_tensors,
)
from .fields import MAX_NAME
from .limits import LimitError, Limits
from .writing import write_atomically

__all__ = [
    'Artifact',
    'ArtifactError',
    'from_json',
    'is_artifact',
    'load_artifact',
    'pack_artifact',
    'save_artifact',
    'to_json',
    'write_atomically',
]

_CONSTANT, _PARAMETER = 'constant.', 'parameter.'
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_MAX_DEPTH = 64


@dataclass
class Artifact:
    """What a ``.clipq`` file holds.

    Attributes:
        graphs: The integer graphs: the dense part, then those of the RoI head's stages.
        parameters: Float parameters and buffers of what stays outside the graph, by the names of
            the detector's ``state_dict()``.
        config: Detector config and whatever else the writer adds, JSON-like; tuples survive.
        meta: Class names and other facts about the data set.
        versions: Versions of the libraries that wrote the file.
    """

    graphs: tuple[ir.Int8Graph, ...]
    parameters: Mapping[str, Tensor]
    config: Mapping[str, Any]
    meta: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)


def to_json(value: Any) -> Any:
    """``value`` as JSON that :func:`from_json` turns back, tuples, slices and refs included.

    Raises:
        ArtifactError: for a value of another kind.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {'$float': str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, ir.Ref):
        return {'$ref': value.name}
    if isinstance(value, tuple):
        return {'$tuple': [to_json(item) for item in value]}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, slice):
        return {'$slice': [to_json(v) for v in (value.start, value.stop, value.step)]}
    if value is ...:
        return {'$ellipsis': True}
    if isinstance(value, torch.dtype):
        return {'$dtype': str(value).removeprefix('torch.')}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    raise ArtifactError(f'found {value!r} of type {type(value).__name__}, wanted plain data')


def _plain_text(key: str, item: Any) -> str:
    if not isinstance(item, str) or len(item) > MAX_NAME:
        raise ValueError(f'{key} of {str(item)[:60]!r}')
    return item


def from_json(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Inverse of :func:`to_json`.

    Raises:
        ValueError: for what that function never writes.
    """
    if depth < 1:
        raise ValueError(f'more than {_MAX_DEPTH} levels')
    if isinstance(value, list):
        return [from_json(item, depth - 1) for item in value]
    if not isinstance(value, dict):
        return value
    (key, item) = next(iter(value.items())) if len(value) == 1 else ('', None)
    if key == '$ref':
        return ir.Ref(_plain_text(key, item))
    if key in ('$tuple', '$slice'):
        if not isinstance(item, list) or (key == '$slice' and len(item) != 3):
            raise ValueError(f'{key} of {str(item)[:60]!r}')
        parts = tuple(from_json(part, depth - 1) for part in item)
        return parts if key == '$tuple' else slice(*parts)
    if key == '$ellipsis':
        return ...
    if key == '$float':
        return float(_plain_text(key, item))
    if key == '$dtype':
        if (name := _plain_text(key, item)) not in _DTYPES:
            raise ValueError(f'{name!r} is no dtype')
        return _DTYPES[name]
    return {key: from_json(item, depth - 1) for key, item in value.items()}


def _node_to_json(node: ir.Node) -> dict[str, Any]:
    values = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.name != 'type'}
    kind = dataclasses.astuple(node.type) if node.type.is_codes else None
    return {'node': type(node).__name__, 'type': kind, **to_json(values)}


def _node_from_json(record: Mapping[str, Any]) -> ir.Node:
    record = dict(record)
    kind, tensor = record.pop('node', None), record.pop('type', None)
    if kind not in ir.NODE_KINDS:
        raise ir.GraphError(f'found a node of kind {kind!r}, wanted one of {sorted(ir.NODE_KINDS)}')
    return ir.NODE_KINDS[kind](
        type=ir.FLOAT if tensor is None else ir.TensorType(*tensor), **from_json(record)
    )


def _versions() -> dict[str, str]:
    import mmcv
    import mmdet
    import mmengine

    packages = {'mmdet': mmdet, 'mmcv': mmcv, 'mmengine': mmengine, 'torch': torch}
    return {'mmclipq': __version__, **{name: str(p.__version__) for name, p in packages.items()}}


def _constants(index: int) -> str:
    """Prefix of the constants of graph number ``index``."""
    return f'{_CONSTANT}{index}.'


def pack_artifact(artifact: Artifact, dense: bool = False) -> bytes:
    """Content of the file that :func:`save_artifact` writes."""
    header = {
        'graphs': [
            {'nodes': [_node_to_json(node) for node in g.nodes], 'outputs': to_json(g.outputs)}
            for g in artifact.graphs
        ],
        'config': to_json(artifact.config),
        'meta': to_json(artifact.meta),
        'versions': dict(artifact.versions) or _versions(),
    }
    tensors = {
        f'{_constants(index)}{key}': value
        for index, graph in enumerate(artifact.graphs)
        for key, value in graph.constants.items()
    }
    tensors |= {f'{_PARAMETER}{key}': value for key, value in artifact.parameters.items()}
    return pack(header, tensors, dense)


def save_artifact(path: str | os.PathLike, artifact: Artifact, dense: bool = False) -> int:
    """Write the file atomically and return its size in bytes.

    Args:
        path: The file.
        artifact: What it holds.
        dense: Whether codes are entropy coded: fewer bytes that take longer to read.

    Raises:
        ArtifactError: if the config or meta data hold anything but plain data.
        OSError: if the file cannot be written.
    """
    data = pack_artifact(artifact, dense)
    write_atomically(path, data)
    return len(data)


def is_artifact(path: str | os.PathLike) -> bool:
    """Whether the file at ``path`` starts like a ``.clipq`` file or is named like one."""
    path = Path(path)
    if path.suffix == '.clipq':
        return True
    if not path.is_file():
        return False
    with path.open('rb') as file:
        return file.read(len(MAGIC)) == MAGIC


def _graph(record: Mapping[str, Any], constants: Mapping[str, Tensor]) -> ir.Int8Graph:
    nodes = tuple(_node_from_json(node) for node in record['nodes'])
    return ir.Int8Graph(nodes, from_json(record['outputs']), constants)


def _read(path: Path, limits: Limits) -> Artifact:
    version, body = read_body(path, limits)
    header, blob = read_header(version, body, limits, str(path))
    if header.get('format', 2) != version:  # version 2 did not repeat it
        raise ir.GraphError(f'found the content of format version {header.get("format", 2)}')
    records = header['graphs']
    if not isinstance(records, list) or not records:
        raise ir.GraphError('found no graph, wanted at least the dense one')
    limits.check('graphs', len(records), str(path))
    limits.check('nodes', max(len(record['nodes']) for record in records), str(path))
    tensors = read_tensors(version, header, blob, limits, str(path))
    graphs = tuple(
        _graph(record, _with_prefix(tensors, _constants(index)))
        for index, record in enumerate(records)
    )
    config, meta, versions = (from_json(header[key]) for key in ('config', 'meta', 'versions'))
    for name, value in (('config', config), ('meta', meta), ('versions', versions)):
        if not isinstance(value, dict):
            raise ValueError(f'{name} of type {type(value).__name__}')
    return Artifact(graphs, _with_prefix(tensors, _PARAMETER), config, meta, versions)


def load_artifact(path: str | os.PathLike, limits: Limits | None = None) -> Artifact:
    """Read and check a ``.clipq`` file.

    Args:
        path: The file.
        limits: On its sizes; by default those of the environment.

    Raises:
        ArtifactError: if there is no such file, or it is no ``.clipq`` file, truncated, altered,
            or newer than this version of mmclipq reads, or its content cannot be a graph.
        LimitError: if it asks for more than ``limits``.
        CoderError: if its codes are entropy coded and the package for that is not installed.
    """
    path = Path(path)
    limits = limits or Limits.from_environment()
    try:
        return _read(path, limits)
    except (ArtifactError, LimitError, CoderError):
        raise
    # Whatever the readers of JSON, zstd and safetensors raise: the content is another program's.
    except Exception as error:
        reason = (str(error) or type(error).__name__).split('\n')[0][:400]
        raise ArtifactError(
            f'{path}: found content that does not fit the format ({reason}), wanted what '
            'tools/quantize.py writes; export it again'
        ) from error


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
