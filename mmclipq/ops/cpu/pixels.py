"""Pixels to codes in C++, see ``csrc/cpu/pixels.cpp``."""

from __future__ import annotations

import ctypes

from torch import Tensor

from ..steps import INT, LONG, fields
from .library import library

CHANNELS = 16
"""Most channels of an image."""


class _Pixels(ctypes.Structure):
    """``ClipqPixels`` of ``csrc/cpu/pixels.cpp``."""

    _fields_ = fields(
        pixels=ctypes.c_void_p,
        rows__columns__channels__row_stride__column_stride__channel_stride=LONG,
        tables__source__codes=ctypes.c_void_p,
        height__width=LONG,
        padding=INT,
    )


def pixels_to_codes(
    pixels: Tensor, tables: Tensor, source: Tensor, padding: int, out: Tensor
) -> None:
    """Look every pixel's code up, and fill what is beyond the image.

    Args:
        pixels: uint8 ``(C, H, W)`` in any memory order, at most :data:`CHANNELS` channels.
        tables: int8 or uint8 ``(C, 256)``, contiguous: the code of each value of a channel.
        source: int64 ``(C,)``: the channel of ``pixels`` that each channel of ``out`` shows.
        padding: Code below and right of the image.
        out: int8 or uint8 ``(C, H', W')`` with channels last in memory, at least as large.
    """
    channels, rows, columns = pixels.shape
    spec = _Pixels(
        pixels.data_ptr(),
        rows, columns, channels,
        pixels.stride(1), pixels.stride(2), pixels.stride(0),
        tables.data_ptr(), source.data_ptr(), out.data_ptr(),
        out.shape[1], out.shape[2], padding & 255,
    )  # fmt: skip
    if not library().clipq_pixels(ctypes.byref(spec)):
        raise ValueError(f'found {channels} channels, wanted at most {CHANNELS}')
