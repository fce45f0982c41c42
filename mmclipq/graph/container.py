"""The container of a ``.clipq`` file; nothing is unpacked before its size is known.

Layout, little endian::

    8 bytes   magic  b'CLIPQ\\r\\n\\0'
    4 bytes   uint32 format version
    8 bytes   uint64 size of everything after the checksum
    32 bytes  SHA-256 of everything after it
    8 bytes   uint64 size of the header
    header    UTF-8 JSON: graph, config, class names, versions of the libraries that wrote it
    rest      zstd frame of a safetensors file with the constants and float parameters
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
import zstandard
from torch import Tensor

from ..errors import ClipQError
from .limits import Limits

MAGIC = b'CLIPQ\r\n\0'
FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
_PREFIX = struct.Struct('<8sIQ32s')
_SIZE = struct.Struct('<Q')
_ZSTD_LEVEL = 12
_MOST_TENSORS, _MOST_AXES = 1 << 16, 8
_ITEM_SIZES = {
    'BOOL': 1, 'U8': 1, 'I8': 1, 'I16': 2, 'U16': 2, 'F16': 2, 'BF16': 2, 'I32': 4, 'U32': 4,
    'F32': 4, 'I64': 8, 'U64': 8, 'F64': 8,
}  # fmt: skip


class ArtifactError(ClipQError):
    """A file that is no intact ``.clipq`` file of a known version."""


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Content of a file from its header and tensors."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(header, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
    blob = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=-1).compress(
        safetensors.torch.save(tensors)
    )
    body = _SIZE.pack(len(text)) + text + blob
    checksum = hashlib.sha256(body).digest()
    return _PREFIX.pack(MAGIC, FORMAT_VERSION, len(body), checksum) + body


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


def _no_number(text: str) -> None:
    raise ValueError(f'{text} is no number of JSON')


def read_header(body: memoryview, limits: Limits, who: str) -> tuple[dict[str, Any], memoryview]:
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
    header = json.loads(bytes(body[_SIZE.size : end]), parse_constant=_no_number)
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


def read_tensors(blob: memoryview, limits: Limits, who: str) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        ValueError: if the content is damaged.
        LimitError: if unpacked it is too large, which its frame says; ``who`` begins the sentence.
    """
    size = zstandard.frame_content_size(blob)
    if size < 1:
        raise ValueError('a zstd frame that does not say its size')
    limits.check('content', size, who)
    content = zstandard.ZstdDecompressor().decompress(blob, size, allow_extra_data=False)
    _check_index(content)
    return safetensors.torch.load(content)
