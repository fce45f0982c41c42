"""Entropy coding of int8 codes: adaptive models in the classes of their rows, asymmetric numerals.

A row is what an index of the first axis holds, an output channel's weights. Its *class* is the mean
magnitude of its codes in quarter octaves, one byte that is stored apart. All rows of a class, in
the order of the tensors' names, share one adaptive model: counts of the 256 codes, which begin with
a geometric distribution of the class's magnitude and are updated behind each block of codes. Blocks
grow from 128 to 8192 codes and counts are halved where they become many, so the model follows.

The coder is rANS of the package ``constriction`` (Bamler 2022, arXiv:2201.01741), which takes a
block's model and codes in one call. Everything that a model is made of is a whole number below
2**53, so that writer and reader have the same one on every machine. The stream begins with a CRC-32
of all codes, which tells if they had not, and counts that are not those of the stream.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ClipQError


class CoderError(ClipQError):
    """The package that codes entropy is not installed."""


CLASSES = 46
"""Classes of rows: mean magnitudes of 1/16 to 152 codes in quarter octaves, less in the first."""
_LEAST = 16
_FRACTIONS = (65536, 77936, 92682, 110218)  # 2**16 * 2**(k / 4)
_FIRST, _LARGEST = 128, 8192  # codes in a block
_COUNT = 32  # what a code that was seen adds
_PRIOR = 64 * _COUNT  # about what all codes have before any was seen
_MANY = _COUNT << 16  # sum of counts that are halved
_ALPHABET = 256


def _coders() -> tuple[Any, Any]:
    """Model and coder of the package, which is read where a file needs it alone.

    Raises:
        CoderError: if it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise CoderError(
            'found no package constriction, wanted it for files that --compress best wrote; '
            'pip install constriction'
        ) from error
    return constriction.stream.model.Categorical, constriction.stream.stack.AnsCoder


def row_classes(codes: np.ndarray) -> np.ndarray:
    """Class of each row of int8 ``(K, n)``, uint8 ``(K,)``."""
    mean = np.abs(codes.astype(np.int16)).mean(1)
    level = np.rint(4 * np.log2(np.maximum(mean, 1 / _LEAST))) + _LEAST
    return level.clip(0, CLASSES - 1).astype(np.uint8)


def _prior(number: int) -> np.ndarray:
    """Counts of the codes -128 to 127 before any was seen, int64 ``(256,)``, none zero."""
    octave, part = divmod(number, 4)
    mean = (_FRACTIONS[part] << octave) // _LEAST  # in units of 2**-16
    ratio = (mean << 16) // (mean + (1 << 16))
    weights = [1 << 20]
    for _ in range(_ALPHABET // 2):
        weights.append(weights[-1] * ratio >> 16)
    counts = np.array([*weights[:0:-1], *weights[:-1]], dtype=np.int64)
    return counts * _PRIOR // counts.sum() + 1


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Start and end of each block of ``count`` codes."""
    start, size = 0, _FIRST
    while start < count:
        yield start, min(start + size, count)
        start, size = start + size, min(2 * size, _LARGEST)


def _updated(counts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    counts = counts + _COUNT * np.bincount(symbols, minlength=_ALPHABET)
    return (counts + 1) // 2 if counts.sum() > _MANY else counts


def encode_codes(tensors: Mapping[str, Tensor]) -> tuple[Tensor, bytes]:
    """Classes of all rows, uint8, and the stream of the codes.

    Args:
        tensors: int8, with at least one axis and one value each.
    """
    categorical, coder_type = _coders()
    rows = {name: tensors[name].numpy().reshape(len(tensors[name]), -1) for name in sorted(tensors)}
    classes = [row_classes(codes) for codes in rows.values()]
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(CLASSES):
        parts = [c[k == number].ravel() for c, k in zip(rows.values(), classes, strict=True)]
        codes = np.concatenate([np.zeros(0, np.int8), *parts])
        counts = _prior(number)
        for start, end in _blocks(len(codes)):
            steps.append((counts.astype(np.int32), codes[start:end]))
            counts = _updated(counts, codes[start:end].astype(np.int32) + _ALPHABET // 2)
    coder = coder_type()
    for counts, codes in reversed(steps):  # the coder is a stack
        model = categorical(counts.astype(np.float64), perfect=False)
        coder.encode_reverse(codes.astype(np.int32) + _ALPHABET // 2, model)
    flat = np.concatenate([np.zeros(0, np.uint8), *classes])
    stream = coder.get_compressed().astype('<u4').tobytes()
    return torch.from_numpy(flat), _check_sum(rows) + stream


def _check_sum(rows: Mapping[str, np.ndarray]) -> bytes:
    """CRC-32 of all codes, by name."""
    value = 0
    for name in sorted(rows):
        value = zlib.crc32(np.ascontiguousarray(rows[name]).data, value)
    return value.to_bytes(4, 'little')


def decode_codes(
    shapes: Mapping[str, Sequence[int]], classes: Tensor, stream: memoryview
) -> dict[str, Tensor]:
    """Inverse of :func:`encode_codes`; beside the result it takes as much memory again at most.

    Args:
        shapes: Of the tensors by name, whose sizes the caller has looked at.
        classes: Of all rows, uint8.
        stream: The codes.

    Raises:
        ValueError: if classes or stream do not fit the shapes, or the stream is damaged.
    """
    kinds = classes.numpy()
    if classes.dtype != torch.uint8 or kinds.shape != (sum(shapes[name][0] for name in shapes),):
        raise ValueError('classes of rows that do not fit the codes')
    if (kinds >= CLASSES).any():
        raise ValueError(f'a row of class {kinds.max()}')
    if len(stream) % 4:
        raise ValueError(f'a stream of codes of {len(stream)} bytes')
    categorical, coder_type = _coders()
    names = sorted(shapes)
    result = {name: np.empty((shapes[name][0], _width(shapes[name])), np.int8) for name in names}
    ends = np.cumsum([shapes[name][0] for name in names])
    of_name = dict(zip(names, np.split(kinds, ends[:-1]), strict=True)) if names else {}
    try:
        coder = coder_type(np.frombuffer(stream[4:], '<u4').astype(np.uint32))
        for number in range(CLASSES):
            masks = {name: of_name[name] == number for name in names}
            sizes = {name: int(m.sum()) * _width(shapes[name]) for name, m in masks.items()}
            codes = np.empty(sum(sizes.values()), np.int8)
            counts = _prior(number)
            for start, end in _blocks(len(codes)):
                model = categorical(counts.astype(np.float64), perfect=False)
                symbols = coder.decode(model, end - start)
                codes[start:end] = symbols - _ALPHABET // 2
                counts = _updated(counts, symbols)
            start = 0
            for name, size in sizes.items():
                if size:
                    rows = codes[start : start + size].reshape(-1, _width(shapes[name]))
                    result[name][masks[name]] = rows
                start += size
        whole = coder.is_empty()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the package's Rust is no Exception
        raise ValueError(f'a stream of codes that cannot be read: {error}') from None
    if not whole or bytes(stream[:4]) != _check_sum(result):
        raise ValueError('a stream of other codes than were written')
    return {name: torch.from_numpy(codes).view(*shapes[name]) for name, codes in result.items()}


def _width(shape: Sequence[int]) -> int:
    return math.prod(shape[1:])
