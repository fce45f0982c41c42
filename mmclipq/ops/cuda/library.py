"""Finds and loads the compiled CUDA operators, once, on their first use.

The library has a plain C interface, so it fits every version of torch and Python.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ClipQError
from ..program import ERROR_SIZE

BUILD_COMMAND = (
    "in the folder of mmclipq, with NVIDIA's compiler nvcc on the PATH: "
    'FORCE_CUDA=1 pip install --no-build-isolation --no-deps --force-reinstall .'
)


@dataclass(frozen=True)
class Properties:
    """Of a GPU.

    Attributes:
        multiprocessors: How many it has.
        shared_bytes: Shared memory that one block may have.
        capability: Ten times its compute capability.
    """

    multiprocessors: int
    shared_bytes: int
    capability: int


@dataclass(frozen=True)
class Tile:
    """What one block of a convolution computes.

    Attributes:
        number: In C++.
        pixels, outputs: Rows and columns of its results.
        shared_bytes: Its shared memory.
        few_channels: Whether it is for inputs of at most 4 channels, and for these alone.
    """

    number: int
    pixels: int
    outputs: int
    shared_bytes: int
    few_channels: bool


class CudaLibrary:
    """The operators in the library file ``path``.

    Attributes:
        tiles: Of its convolutions.

    Raises:
        OSError: if the file does not load.
        AttributeError: if it was built from other sources.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._library = ctypes.CDLL(str(path))
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
        self._library.clipq_cuda_run.argtypes = [pointer, size, pointer, pointer, text, size]
        self._library.clipq_cuda_properties.argtypes = [ctypes.c_int32, pointer, text, size]
        self._library.clipq_cuda_tile.argtypes = [ctypes.c_int32, pointer]
        self.tiles = tuple(self._find_tiles())

    def _find_tiles(self) -> Iterator[Tile]:
        found = (ctypes.c_int32 * 4)()
        number = 0
        while self._library.clipq_cuda_tile(number, found):
            pixels, outputs, shared, few = found
            yield Tile(number, pixels, outputs, shared, bool(few))
            number += 1

    def run(self, start: Any, count: int, buffers: Any, stream: int, error: Any) -> int:
        """Launch ``count`` steps on a stream; returns 0 if one fails, with a text in ``error``."""
        return self._library.clipq_cuda_run(start, count, buffers, stream, error, ERROR_SIZE)

    def properties(self, device: int) -> Properties:
        """Of the GPU number ``device``.

        Raises:
            ClipQError: if the driver does not answer.
        """
        found = (ctypes.c_int32 * 3)()
        error = ctypes.create_string_buffer(ERROR_SIZE)
        if not self._library.clipq_cuda_properties(device, found, error, ERROR_SIZE):
            raise ClipQError(f'GPU {device}: {error.value.decode()}')
        return Properties(*found)


@functools.cache
def _load() -> CudaLibrary | str:
    """The compiled library, or why there is none."""
    path = Path(__file__).with_name('_cuda.so')
    if not path.is_file():
        return f'its operators are not built; run {BUILD_COMMAND}'
    try:
        return CudaLibrary(path)
    except (OSError, AttributeError) as error:
        return f'its operators do not load ({error}); run {BUILD_COMMAND}'


def why_unavailable() -> str:
    """Why the operators cannot be loaded; empty if they can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ''


def library() -> CudaLibrary:
    """The compiled operators.

    Raises:
        ClipQError: if they cannot be loaded.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise ClipQError(f'backend cuda: {loaded}')
    return loaded
