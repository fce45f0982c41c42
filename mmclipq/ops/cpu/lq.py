"""The Lq loss of a weight tensor in C++ (``csrc/cpu/lq.cpp``)."""

from __future__ import annotations

import ctypes
import math

from torch import Tensor

from ... import fixed_point as fp
from ..steps import FLOAT, INT, LONG, fields
from .library import follow_torch_threads, library


class _Lq(ctypes.Structure):
    """``ClipqLq``."""

    _fields_ = fields(weights=ctypes.c_void_p, count=LONG, scale__limit=FLOAT, rounds=INT)


def _spec(weight: Tensor, exponent: int, rounds: bool) -> _Lq:
    follow_torch_threads()
    scale, limit = 1 / fp.step(exponent), math.ldexp(1.0, exponent)
    return _Lq(weight.data_ptr(), weight.numel(), scale, limit, rounds)


def lq_sum(weight: Tensor, exponent: int, rounds: bool) -> float:
    """``sum((w - C(w))**2)``, its squares in float32, their sum mostly in float64.

    Args:
        weight: Float32, contiguous, on the CPU.
        exponent: Of its range.
        rounds: Whether ``C(w)`` is the nearest fixed-point value, else the clipped weight.
    """
    spec = _spec(weight, exponent, rounds)
    return library().clipq_lq_sum(ctypes.byref(spec)) * fp.step(exponent) ** 2


def lq_gradient(weight: Tensor, exponent: int, rounds: bool, factor: float, out: Tensor) -> None:
    """``(w - C(w)) / step * factor`` into ``out``, contiguous as ``weight``; see :func:`lq_sum`."""
    spec = _spec(weight, exponent, rounds)
    library().clipq_lq_gradient(ctypes.byref(spec), factor, out.data_ptr())
