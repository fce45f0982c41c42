"""Additions, changes of range and max-pooling of codes in C++, bit for bit the reference's."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import fixed_point as fp
from ..graph.nodes import Add, MaxPool, Requantize, TensorType
from .library import library

_PAIR = ctypes.c_int64 * 2
_ACTIVATIONS = {'identity': 0, 'relu': 1, 'leaky_relu': 1, 'relu6': 2}


class _Add(ctypes.Structure):
    """``ClipqAdd`` of ``csrc/cpu/elementwise.cpp``."""

    _fields_ = [
        *((n, ctypes.c_int32) for n in ('a_signed', 'b_signed', 'dst_signed', 'activation')),
        *((n, ctypes.c_float) for n in ('a_step', 'b_step', 'scale', 'alpha')),
    ]


class _MaxPool(ctypes.Structure):
    """``ClipqMaxPool`` of ``csrc/cpu/elementwise.cpp``."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ('images', 'height', 'width', 'channels')),
        *((n, ctypes.c_int64) for n in ('rows', 'columns')),
        *((n, _PAIR) for n in ('kernel', 'stride', 'padding', 'dilation')),
    ]


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


def _step(kind: TensorType) -> float:
    return math.ldexp(1.0, kind.step_exponent)


def add(node: Add, x: Tensor, x_type: TensorType, other: Tensor, other_type: TensorType) -> Tensor:
    """Codes of the activated sum of two code tensors of one shape."""
    alpha = {'relu6': 6.0, 'leaky_relu': node.slope}.get(node.activation, 0.0)
    spec = _Add(
        x_type.signed, other_type.signed, node.type.signed, _ACTIVATIONS[node.activation],
        _step(x_type), _step(other_type), 1 / _step(node.type), alpha,
    )  # fmt: skip
    return _run(spec, x, other, node.type)


def requantize(node: Requantize, x: Tensor, x_type: TensorType) -> Tensor:
    """Codes of the range of ``node`` for codes of another."""
    spec = _Add(
        x_type.signed, True, node.type.signed, 0, _step(x_type), 0.0, 1 / _step(node.type), 0.0
    )
    return _run(spec, x, None, node.type)


def _run(spec: _Add, x: Tensor, other: Tensor | None, kind: TensorType) -> Tensor:
    layout = _layout(x)
    x = x.contiguous(memory_format=layout)
    if other is not None:
        other = other.contiguous(memory_format=layout)
    dtype = fp.code_dtype(kind.signed)
    result = torch.empty(x.shape, dtype=dtype, memory_format=layout)
    library().clipq_add(
        ctypes.byref(spec),
        x.data_ptr(),
        None if other is None else other.data_ptr(),
        result.data_ptr(),
        x.numel(),
    )
    return result


def max_pool(node: MaxPool, x: Tensor) -> Tensor:
    """Largest code of each window, with channels last in memory."""
    # PyTorch's own rules give the size; an empty tensor makes that free.
    shape = F.max_pool2d(
        torch.empty(1, 1, *x.shape[2:], device='meta'), node.kernel, node.stride, node.padding,
        node.dilation, node.ceil_mode,
    ).shape  # fmt: skip
    x = x.contiguous(memory_format=torch.channels_last)
    result = torch.empty(
        (*x.shape[:2], *shape[2:]), dtype=x.dtype, memory_format=torch.channels_last
    )
    spec = _MaxPool(
        len(x), *x.shape[2:], x.shape[1], *shape[2:],
        *(_PAIR(*pair) for pair in (node.kernel, node.stride, node.padding, node.dilation)),
    )  # fmt: skip
    library().clipq_max_pool(
        ctypes.byref(spec), x.data_ptr(), result.data_ptr(), x.dtype == torch.int8
    )
    return result
