"""Power-of-two fixed-point arithmetic, the bottom of everything else.

A *range* is ``[-2**e, 2**e]`` with an integer *exponent* ``e`` (the paper's ``j`` and ``k`` are
``-e``). Signed codes are int8 with the step ``2**(e - 7)``; unsigned codes, for tensors that
cannot be negative, are uint8 with the step ``2**(e - 8)`` over ``[0, 2**e]``. Unsigned codes may
have an *offset*, the code that stands for zero, which moves the range down by so many steps.
Rounding is half to even, values outside the range saturate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from .errors import ClipQError

EXPONENT_MIN = -40
"""Smallest exponent; products of two steps and a batch-norm scale stay normal float32 numbers."""
EXPONENT_MAX = 40
"""Largest exponent; with it ``127 * 127`` products of any fan-in stay finite in float32."""


def check_exponent(exponent: int, name: str = 'exponent') -> int:
    """``exponent`` itself, once it is known to be an integer within the supported limits.

    Raises:
        ClipQError: if it is no integer or outside ``[EXPONENT_MIN, EXPONENT_MAX]``.
    """
    try:
        whole = not isinstance(exponent, bool) and int(exponent) == exponent
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ClipQError(f'{name}: found {exponent!r}, wanted an integer exponent of two')
    if not EXPONENT_MIN <= exponent <= EXPONENT_MAX:
        raise ClipQError(
            f'{name}: found exponent {exponent}, '
            f'wanted one from {EXPONENT_MIN} to {EXPONENT_MAX}; scale the tensor'
        )
    return int(exponent)


def check_finite(x: Tensor, name: str) -> None:
    """Return if every value of ``x`` is finite.

    Raises:
        ClipQError: naming ``name`` and counting its NaN and infinite values.
    """
    if not bool(torch.isfinite(x).all()):
        nan, inf = int(x.isnan().sum()), int(x.isinf().sum())
        raise ClipQError(
            f'{name}: found {nan} NaN and {inf} infinite of {x.numel()} values, '
            'wanted finite values only; check the checkpoint'
        )


def code_range(signed: bool = True) -> tuple[int, int]:
    """Smallest and largest code: ``(-128, 127)`` signed, ``(0, 255)`` unsigned."""
    return (-128, 127) if signed else (0, 255)


def code_dtype(signed: bool = True) -> torch.dtype:
    """``torch.int8`` for signed codes, ``torch.uint8`` for unsigned ones."""
    return torch.int8 if signed else torch.uint8


@overload
def step_exponent(exponent: int, signed: bool = True) -> int: ...


@overload
def step_exponent(exponent: Tensor, signed: bool = True) -> Tensor: ...


def step_exponent(exponent: int | Tensor, signed: bool = True) -> int | Tensor:
    """Exponent of the step of a range: ``e - 7`` signed, ``e - 8`` unsigned."""
    return exponent - (7 if signed else 8)


def step(exponent: int, signed: bool = True) -> float:
    """Distance of two neighbouring representable values.

    >>> step(3), step(3, signed=False)
    (0.0625, 0.03125)
    """
    return math.ldexp(1.0, step_exponent(exponent, signed))


def range_exponent(limit: float, name: str = 'range') -> int:
    """Exponent of a range that the user wrote as a number, such as ``8`` or ``0.125``.

    >>> range_exponent(0.125)
    -3

    Raises:
        ClipQError: if ``limit`` is no positive power of two or its exponent is out of range.
    """
    limit = float(limit)
    if not (limit > 0 and math.isfinite(limit)):
        raise ClipQError(
            f'{name}: found {limit}, wanted a positive power of two such as 8 or 0.125'
        )
    mantissa, exponent = math.frexp(limit)
    if mantissa != 0.5:
        raise ClipQError(
            f'{name}: found {limit:g}, wanted a power of two; '
            f'the nearest are {math.ldexp(0.5, exponent):g} and {math.ldexp(1.0, exponent):g}'
        )
    return check_exponent(exponent - 1, name)


def holding_exponent(magnitude: float) -> int:
    """Smallest supported exponent ``e`` with ``magnitude <= 2**e``; zero gives the smallest one.

    >>> holding_exponent(8.0), holding_exponent(8.1), holding_exponent(0.1)
    (3, 4, -3)

    Raises:
        ClipQError: if ``magnitude`` is above ``2**EXPONENT_MAX``, infinite or NaN.
    """
    if not math.isfinite(magnitude):
        raise ClipQError(f'magnitude: found {magnitude}, wanted a finite number')
    if magnitude <= 0:
        return EXPONENT_MIN
    mantissa, exponent = math.frexp(magnitude)
    return check_exponent(max(EXPONENT_MIN, exponent - (mantissa == 0.5)), 'magnitude')


def clip(x: Tensor, exponent: int) -> Tensor:
    """``x`` limited to ``[-2**exponent, 2**exponent]`` (eq. 14 and 15 of the paper).

    The gradient is 1 inside the closed range and 0 outside.
    """
    limit = math.ldexp(1.0, exponent)
    return x.clamp(-limit, limit)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` in float32, exactly, for an integer tensor of exponents from -126 to 127."""
    # Written into the exponent bits, because exp2 and ldexp of torch may be one unit off.
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def rounded_mantissa(x: Tensor, bits: int) -> Tensor:
    """float32 ``x`` with so many significant bits, rounded half to even."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2.0**bits).round() / 2.0**bits, exponent)


def _scale(exponent: int | Tensor, signed: bool, axis: int | None, x: Tensor) -> float | Tensor:
    """``2**-step_exponent``, shaped so that it broadcasts along ``axis`` of ``x``."""
    if axis is None:
        return math.ldexp(1.0, -step_exponent(int(exponent), signed))
    scale = power_of_two(-step_exponent(torch.as_tensor(exponent, device=x.device), signed))
    if scale.shape != (x.shape[axis],):
        raise ClipQError(
            f'found {tuple(scale.shape)} exponents for axis {axis} of a tensor of shape '
            f'{tuple(x.shape)}, wanted one for each of its {x.shape[axis]} channels'
        )
    shape = [1] * x.dim()
    shape[axis] = -1
    return scale.view(shape)


def encode(
    x: Tensor,
    exponent: int | Tensor,
    signed: bool = True,
    axis: int | None = None,
    name: str = 'tensor',
    offset: int = 0,
) -> Tensor:
    """Codes of ``x``: ``saturate(round_half_even(x / step) + offset)`` (eq. 16, 17 of the paper).

    Args:
        x: Float tensor of any shape.
        exponent: Range exponent, or an integer tensor of shape ``(x.shape[axis],)``.
        signed: int8 codes if True, else uint8.
        axis: Channel axis of per-channel exponents; None for one exponent.
        name: What ``x`` is called in an error.
        offset: Code that stands for zero.

    Returns:
        int8 or uint8 tensor of the shape of ``x``.

    Raises:
        ClipQError: if ``x`` holds NaN or infinity, or the exponents do not fit ``axis``.
    """
    check_finite(x, name)
    low, high = code_range(signed)
    codes = torch.round(x * _scale(exponent, signed, axis, x)).add_(offset)
    return codes.clamp_(low, high).to(code_dtype(signed))


def decode(
    codes: Tensor,
    exponent: int | Tensor,
    axis: int | None = None,
    dtype: torch.dtype = torch.float32,
    offset: int = 0,
) -> Tensor:
    """Values of int8 or uint8 ``codes`` (the dtype tells the step), exact in ``dtype``.

    ``offset`` is the code that stands for zero.
    """
    values = codes.to(dtype).sub(offset)
    return values / _scale(exponent, codes.dtype == torch.int8, axis, values)


def quantize(
    x: Tensor,
    exponent: int | Tensor,
    signed: bool = True,
    axis: int | None = None,
    offset: int = 0,
) -> Tensor:
    """Nearest representable value of each value of ``x``; no gradient, no check for NaN."""
    low, high = code_range(signed)
    scale = _scale(exponent, signed, axis, x)
    return (x * scale).round_().clamp_(low - offset, high - offset).div_(scale).to(x.dtype)


def covering_padding(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis so that a window starts at every ``stride``-th pixel.

    The results are ``ceil(size / stride)``; of an uneven number the larger half comes after.

    >>> covering_padding((5, 8), (3, 3), (2, 2), (1, 1))
    [(1, 1), (0, 1)]
    """
    pairs = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, exponent, signed, axis):
        ctx.save_for_backward(x)
        ctx.arguments = exponent, signed, axis
        return quantize(x, exponent, signed, axis)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        exponent, signed, axis = ctx.arguments
        # |x| / step <= 2**7 (or 0 <= x / step <= 2**8) is the closed range itself.
        scaled = x * _scale(exponent, signed, axis, x)
        inside = (scaled.abs() <= 128) if signed else ((scaled >= 0) & (scaled <= 256))
        return grad * inside, None, None, None


def fake_quantize(
    x: Tensor, exponent: int | Tensor, signed: bool = True, axis: int | None = None
) -> Tensor:
    """:func:`quantize` whose gradient is that of the clip: 1 inside the range, 0 outside."""
    return _StraightThrough.apply(x, exponent, signed, axis)
