"""The container of a ``.clipq`` file; nothing is unpacked before its size is known.

Layout, little endian::

    8 bytes   magic  b'CLIPQ\\r\\n\\0'
    4 bytes   uint32 format version
    8 bytes   uint64 size of everything after the checksum
    32 bytes  SHA-256 of everything after it
    8 bytes   uint64 size of the header
    header    UTF-8 JSON: graph, config, class names, versions of the libraries that wrote it
    rest      zstd frame of a safetensors file with the constants and float parameters

Version 4, the dense form, has the header in a zstd frame (whose size is the one stated), 8 bytes
more before the tensors' frame, a uint64 with its size, and the stream of
:mod:`mmclipq.graph.codes` behind it. The header names in ``codes`` the int8 tensors that are in
the stream, with their shapes; the frame's tensor ``classes`` belongs to them. It names in
``planes`` dtype and shape of tensors of 4-byte values whose bytes lie in the frame by significance,
uint8 ``(4, n)``, which zstd packs better.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import zstandard
from torch import Tensor

from ..errors import ClipQError
from .codes import decode_codes, encode_codes
from .limits import Limits

MAGIC = b'CLIPQ\r\n\0'
FORMAT_VERSION = 3
DENSE_VERSION = 4
"""Of files whose codes are entropy coded, which is written where asked for alone."""
READABLE_VERSIONS = (2, 3, 4)
_PREFIX = struct.Struct('<8sIQ32s')
_SIZE = struct.Struct('<Q')
_ZSTD_LEVEL, _DENSE_LEVEL = 12, 19
_PLANE_DTYPES = {'float32': torch.float32, 'int32': torch.int32}
_CLASSES = 'classes'
_MOST_TENSORS, _MOST_AXES = 1 << 16, 8
_ITEM_SIZES = {
    'BOOL': 1, 'U8': 1, 'I8': 1, 'I16': 2, 'U16': 2, 'F16': 2, 'BF16': 2, 'I32': 4, 'U32': 4,
    'F32': 4, 'I64': 8, 'U64': 8, 'F64': 8,
}  # fmt: skip


class ArtifactError(ClipQError):
    """A file that is no intact ``.clipq`` file of a known version."""


def _zstd(tensors: Mapping[str, Tensor], level: int) -> bytes:
    content = safetensors.torch.save(dict(tensors))
    return zstandard.ZstdCompressor(level=level, threads=-1).compress(content)


def _dense_parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """What the header of the dense form says beside the rest, and what follows the header."""
    coded = {k: v for k, v in tensors.items() if v.dtype == torch.int8 and v.dim() and v.numel()}
    wide = {k: v for k, v in tensors.items() if v.dtype in _PLANE_DTYPES.values() and v.numel()}
    kept = {k: v for k, v in tensors.items() if k not in coded and k not in wide}
    planes = {k: v.reshape(-1, 1).view(torch.uint8).T.contiguous() for k, v in wide.items()}
    classes, stream = encode_codes(coded)
    frame = _zstd({**kept, **planes, _CLASSES: classes}, _DENSE_LEVEL)
    told = {
        'codes': {k: list(v.shape) for k, v in coded.items()},
        'planes': {
            k: [str(v.dtype).removeprefix('torch.'), list(v.shape)] for k, v in wide.items()
        },
    }
    return told, _SIZE.pack(len(frame)) + frame + stream


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor], dense: bool = False) -> bytes:
    """Content of a file from its header and tensors.

    Args:
        header: JSON-like.
        tensors: By name.
        dense: Whether codes are entropy coded: fewer bytes that take longer to read.

    Raises:
        ClipQError: if that is wanted and its package is not installed.
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    version = DENSE_VERSION if dense else FORMAT_VERSION
    told, rest = _dense_parts(tensors) if dense else ({}, _zstd(tensors, _ZSTD_LEVEL))
    header = {**header, **told, 'format': version}
    text = json.dumps(header, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
    if dense:
        text = zstandard.ZstdCompressor(level=_DENSE_LEVEL).compress(text)
    body = _SIZE.pack(len(text)) + text + rest
    checksum = hashlib.sha256(body).digest()
    return _PREFIX.pack(MAGIC, version, len(body), checksum) + body


def read_body(path: Path, limits: Limits) -> tuple[int, memoryview]:
    """Format version, and everything after the checksum, which is right.

    Raises:
        ArtifactError: if there is no such file, or it is no ``.clipq`` file, truncated, altered, or
            newer than this version of mmclipq reads.
        LimitError: if it is too large.
    """
    if not path.is_file():
        raise ArtifactError(f'{path}: found no file, wanted a .clipq file')
    limits.check('file', path.stat().st_size, str(path))
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f'{path}: found {error.strerror}, wanted a readable file') from error
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ArtifactError(
            f'{path}: found no .clipq file, wanted one that tools/quantize.py wrote'
        )
    if len(data) < _PREFIX.size:
        raise ArtifactError(f'{path}: found a truncated .clipq file; copy or export it again')
    _, version, size, checksum = _PREFIX.unpack(data[: _PREFIX.size])
    if version not in READABLE_VERSIONS:
        cure = 'update mmclipq' if version > DENSE_VERSION else 'export it again'
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


def _no_number(text: str) -> None:
    raise ValueError(f'{text} is no number of JSON')


def _unpacked(frame: memoryview, name: str, limits: Limits, who: str, beside: int = 0) -> bytes:
    """Content of a zstd frame, which with ``beside`` more bytes is within the limit ``name``."""
    size = zstandard.frame_content_size(frame)
    if size < 1:
        raise ValueError('a zstd frame that does not say its size')
    limits.check(name, size + beside, who)
    return zstandard.ZstdDecompressor().decompress(frame, size, allow_extra_data=False)


def read_header(
    version: int, body: memoryview, limits: Limits, who: str
) -> tuple[dict[str, Any], memoryview]:
    """The header, and what follows it.

    Raises:
        ValueError: if it is no JSON object, or not all there.
        LimitError: if it is too large; ``who`` begins the sentence.
    """
    if len(body) < _SIZE.size:
        raise ValueError('no header')
    (length,) = _SIZE.unpack(body[: _SIZE.size])
    if length > len(body) - _SIZE.size:
        raise ValueError(f'a header of {length} bytes, of which {len(body)} are there')
    limits.check('header', length, who)
    end = _SIZE.size + length
    text = body[_SIZE.size : end]
    content = _unpacked(text, 'header', limits, who) if version == DENSE_VERSION else bytes(text)
    header = json.loads(content, parse_constant=_no_number)
    if not isinstance(header, dict):
        raise ValueError(f'a header of type {type(header).__name__}')
    return header, body[end:]


def _check_index(blob: bytes) -> None:
    """Return if the index of a safetensors file describes tensors that can be read.

    Raises:
        ValueError: naming the tensor that it is about.
    """
    (length,) = _SIZE.unpack(blob[: _SIZE.size].ljust(_SIZE.size))
    if length > len(blob) - _SIZE.size:
        raise ValueError('an index of tensors that is not all there')
    index = json.loads(blob[_SIZE.size : _SIZE.size + length], parse_constant=_no_number)
    if not isinstance(index, dict) or len(index) > _MOST_TENSORS:
        raise ValueError('an index of tensors that is none, or too long')
    for name, entry in index.items():
        if name == '__metadata__':
            continue
        shape, (start, end) = entry['shape'], entry['data_offsets']
        size = _ITEM_SIZES.get(entry['dtype'])
        if size is None:
            raise ValueError(f'{name[:80]}: dtype {entry["dtype"]!r}')
        whole = all(type(side) is int and 0 <= side < 2**40 for side in [*shape, start, end])
        if not whole or len(shape) > _MOST_AXES or math.prod(shape) * size != end - start:
            raise ValueError(f'{name[:80]}: shape {str(shape)[:80]} in {start} to {end}')


def _frame(blob: memoryview, limits: Limits, who: str, beside: int = 0) -> dict[str, Tensor]:
    """Tensors of a zstd frame, which with ``beside`` more bytes are within the limits."""
    content = _unpacked(blob, 'content', limits, who, beside)
    _check_index(content)
    return safetensors.torch.load(content)


def _count(name: str, shape: Any) -> int:
    """Values of a tensor of ``shape``, at least one."""
    right = isinstance(shape, list) and 0 < len(shape) <= _MOST_AXES
    if not right or not all(type(side) is int and 0 < side < 2**40 for side in shape):
        raise ValueError(f'{name[:80]}: shape {str(shape)[:80]}')
    return math.prod(shape)


def _from_planes(name: str, planes: Tensor | None, entry: Any) -> Tensor:
    """The tensor whose bytes lie by significance in ``planes``."""
    (kind, shape) = entry
    if kind not in _PLANE_DTYPES or not isinstance(shape, list):
        raise ValueError(f'{name[:80]}: planes of {str(kind)[:80]}')
    count = _count(name, [1, *shape])
    if planes is None or planes.dtype != torch.uint8 or planes.shape != (4, count):
        raise ValueError(f'{name[:80]}: planes that are not {count} values of 4 bytes')
    return planes.T.contiguous().flatten().view(_PLANE_DTYPES[kind]).view(shape)


def _read_dense(
    header: Mapping[str, Any], rest: memoryview, limits: Limits, who: str
) -> dict[str, Tensor]:
    shapes, planes = header['codes'], header['planes']
    if not isinstance(shapes, dict) or not isinstance(planes, dict):
        raise ValueError('codes or planes that are no table')
    if max(len(shapes), len(planes)) > _MOST_TENSORS:
        raise ValueError('more tensors than a file may have')
    coded = sum(_count(name, shape) for name, shape in shapes.items())
    limits.check('codes', coded, who)
    (size,) = _SIZE.unpack(rest[: _SIZE.size])
    if size > len(rest) - _SIZE.size:
        raise ValueError(f'a frame of {size} bytes, of which {len(rest)} are there')
    stream = rest[_SIZE.size + size :]
    tensors = _frame(rest[_SIZE.size : _SIZE.size + size], limits, who, coded)
    if (classes := tensors.pop(_CLASSES, None)) is None or tensors.keys() & shapes.keys():
        raise ValueError('codes without classes, or twice')
    tensors |= {name: _from_planes(name, tensors.get(name), planes[name]) for name in planes}
    return tensors | decode_codes(shapes, classes, stream)


def read_tensors(
    version: int, header: Mapping[str, Any], rest: memoryview, limits: Limits, who: str
) -> dict[str, Tensor]:
    """The tensors by name.

    Args:
        version: Of the format.
        header, rest: From :func:`read_header`.
        limits: On their size.
        who: Begins the sentence of an error.

    Raises:
        ValueError: if the content is damaged.
        LimitError: if unpacked it is too large, which header and frame say.
        ClipQError: if codes are entropy coded and the package for it is not installed.
    """
    if version == DENSE_VERSION:
        return _read_dense(header, rest, limits, who)
    return _frame(rest, limits, who)
