"""The ``.clipq`` file: graph, constants, detector config and class names in one checked file.

Layout, little endian::

    8 bytes   magic  b'CLIPQ\\r\\n\\0'
    4 bytes   uint32 format version
    8 bytes   uint64 size of everything after the checksum
    32 bytes  SHA-256 of everything after it
    8 bytes   uint64 size of the header
    header    UTF-8 JSON: graph, config, class names, versions of the libraries that wrote it
    rest      zstd frame of a safetensors file with the constants and float parameters

Nothing in it is executed or unpickled on reading.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import zstandard
from torch import Tensor

from ..errors import ClipQError
from ..version import __version__
from . import ir

MAGIC = b'CLIPQ\r\n\0'
FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
_PREFIX = struct.Struct('<8sIQ32s')
_HEADER_SIZE = struct.Struct('<Q')
_ZSTD_LEVEL = 12
_CONSTANT, _PARAMETER = 'constant.', 'parameter.'


class ArtifactError(ClipQError):
    """A file that is no intact ``.clipq`` file of a known version."""


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


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f'{name!r} is no dtype')
    return dtype


def from_json(value: Any) -> Any:
    """Inverse of :func:`to_json`."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (key, item), *_ = value.items()
        if key == '$ref':
            return ir.Ref(item)
        if key == '$tuple':
            return tuple(from_json(part) for part in item)
        if key == '$slice':
            return slice(*(from_json(part) for part in item))
        if key == '$ellipsis':
            return ...
        if key == '$float':
            return float(item)
        if key == '$dtype':
            return _dtype(item)
    return {key: from_json(item) for key, item in value.items()}


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


def _pack(artifact: Artifact) -> bytes:
    header = {
        'graphs': [
            {'nodes': [_node_to_json(node) for node in g.nodes], 'outputs': to_json(g.outputs)}
            for g in artifact.graphs
        ],
        'format': FORMAT_VERSION,
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
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(header, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
    blob = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=-1).compress(
        safetensors.torch.save(tensors)
    )
    return _HEADER_SIZE.pack(len(text)) + text + blob


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` to ``path`` so that the file is whole or absent, whenever it is interrupted.

    Raises:
        OSError: if the folder cannot be made or written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def save_artifact(path: str | os.PathLike, artifact: Artifact) -> int:
    """Write the file atomically and return its size in bytes.

    Raises:
        ArtifactError: if the config or meta data hold anything but plain data.
        OSError: if the file cannot be written.
    """
    body = _pack(artifact)
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(body), hashlib.sha256(body).digest())
    write_atomically(path, prefix + body)
    return len(prefix) + len(body)


def is_artifact(path: str | os.PathLike) -> bool:
    """Whether the file at ``path`` starts like a ``.clipq`` file or is named like one."""
    path = Path(path)
    if path.suffix == '.clipq':
        return True
    if not path.is_file():
        return False
    with path.open('rb') as file:
        return file.read(len(MAGIC)) == MAGIC


def _checked_body(path: Path) -> tuple[int, memoryview]:
    """Format version, and everything after the checksum."""
    if not path.is_file():
        raise ArtifactError(f'{path}: found no file, wanted a .clipq file')
    data = memoryview(path.read_bytes())
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ArtifactError(
            f'{path}: found no .clipq file, wanted one that tools/quantize.py wrote'
        )
    if len(data) < _PREFIX.size:
        raise ArtifactError(f'{path}: found a truncated .clipq file; copy or export it again')
    _, version, size, checksum = _PREFIX.unpack(data[: _PREFIX.size])
    if version not in READABLE_VERSIONS:
        cure = 'update mmclipq' if version > FORMAT_VERSION else 'export it again'
        raise ArtifactError(
            f'{path}: found format version {version}, wanted {FORMAT_VERSION}; {cure}'
        )
    body = data[_PREFIX.size :]
    if len(body) < size:
        raise ArtifactError(
            f'{path}: found {len(data)} bytes, wanted {_PREFIX.size + size}: the file is '
            'truncated; copy or export it again'
        )
    if len(body) > size or hashlib.sha256(body).digest() != checksum:
        raise ArtifactError(
            f'{path}: found another checksum than the file states, so it was altered; '
            'copy or export it again'
        )
    return version, body


def load_artifact(path: str | os.PathLike) -> Artifact:
    """Read and check a ``.clipq`` file.

    Raises:
        ArtifactError: if there is no such file, or it is no ``.clipq`` file, truncated, altered,
            or newer than this version of mmclipq reads.
    """
    path = Path(path)
    version, body = _checked_body(path)
    start = _HEADER_SIZE.size
    try:
        (length,) = _HEADER_SIZE.unpack(body[:start])
        header = json.loads(bytes(body[start : start + length]))
        if header.get('format', 2) != version:  # version 2 did not repeat it
            raise ir.GraphError(f'found the content of format version {header.get("format", 2)}')
        blob = zstandard.ZstdDecompressor().decompress(body[start + length :])
        tensors = safetensors.torch.load(blob)
        graphs = tuple(
            ir.Int8Graph(
                tuple(_node_from_json(record) for record in graph['nodes']),
                from_json(graph['outputs']),
                _with_prefix(tensors, _constants(index)),
            )
            for index, graph in enumerate(header['graphs'])
        )
        if not graphs:
            raise ir.GraphError('found no graph, wanted at least the dense one')
        return Artifact(
            graphs,
            _with_prefix(tensors, _PARAMETER),
            from_json(header['config']),
            from_json(header['meta']),
            header['versions'],
        )
    # Whatever the readers of JSON, zstd and safetensors raise: the content is another program's.
    except Exception as error:
        reason = (str(error) or type(error).__name__).split('\n')[0]
        raise ArtifactError(
            f'{path}: found content that does not fit the format ({reason}), wanted what '
            'tools/quantize.py writes; export it again'
        ) from error


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
