"""RoIAlign on codes in C++, bit for bit that of :mod:`mmclipq.backends.roi_align`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..graph.nodes import RoIAlign, TensorType
from .library import library


class _Level(ctypes.Structure):
    _fields_ = [
        ('codes', ctypes.c_void_p),
        ('height', ctypes.c_int64),
        ('width', ctypes.c_int64),
        ('scale', ctypes.c_float),
    ]


class _Spec(ctypes.Structure):
    """``ClipqRoIAlign`` of ``csrc/cpu/roi_align.cpp``."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ('levels', 'channels', 'rows', 'columns', 'sampling_ratio')),
        *((n, ctypes.c_int32) for n in ('aligned', 'src_signed', 'dst_signed')),
        *((n, ctypes.c_float) for n in ('finest_scale', 'scale')),
    ]


def roi_align(levels: Sequence[Tensor], kind: TensorType, rois: Tensor, node: RoIAlign) -> Tensor:
    """Codes of ``node`` with channels last in memory.

    Args:
        levels: int8 or uint8 codes ``(N, C, H, W)``, the finest first.
        kind: Their type.
        rois: Float32 regions ``(K, 5)``.
        node: Geometry and type of the result.

    Returns:
        Codes ``(K, C, *node.output_size)``.
    """
    levels = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    rois, channels = rois.contiguous(), levels[0].shape[1]
    result = torch.empty(
        (len(rois), channels, *node.output_size),
        dtype=fp.code_dtype(node.type.signed),
        memory_format=torch.channels_last,
    )
    spec = _Spec(
        len(levels), channels, *node.output_size, node.sampling_ratio, node.aligned, kind.signed,
        node.type.signed, node.finest_scale,
        math.ldexp(1.0, kind.step_exponent - node.type.step_exponent),
    )  # fmt: skip
    table = (_Level * len(levels))(*(
        (level.data_ptr(), *level.shape[2:], scale)
        for level, scale in zip(levels, node.scales, strict=True)
    ))  # fmt: skip
    library().clipq_roi_align(
        ctypes.byref(spec), table, rois.data_ptr(), len(rois), result.data_ptr()
    )
    return result
