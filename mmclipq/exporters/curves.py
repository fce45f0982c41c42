"""Activations as functions of real numbers: which inputs matter to a result of some range."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

LINEAR = frozenset({'identity', 'relu', 'relu6', 'leaky_relu'})
"""Activations that are straight lines between corners, which need no table."""

_POSITIVE = np.exp2(np.arange(-3200, 3201) / 64)
_GRID = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * _erfc(-x * math.sqrt(0.5))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def curve(activation: str, slope: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    """The function of float64 values that ``activation`` is in mathematics."""
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        'identity': lambda x: x,
        'relu': lambda x: np.maximum(x, 0),
        'relu6': lambda x: np.clip(x, 0, 6),
        'leaky_relu': lambda x: np.where(x > 0, x, x * slope),
        'silu': lambda x: x * _sigmoid(x),
        'sigmoid': _sigmoid,
        'tanh': np.tanh,
        'hardswish': lambda x: x * np.clip(x + 3, 0, 6) / 6,
        'hardsigmoid': lambda x: np.clip(x + 3, 0, 6) / 6,
        'gelu': _gelu,
        'gelu_tanh': _gelu_tanh,
        'elu': lambda x: np.where(x > 0, x, slope * np.expm1(np.minimum(x, 0))),
        'mish': lambda x: x * np.tanh(np.logaddexp(0, x)),
        'exp': lambda x: np.exp(np.clip(x, -87, 88)),
    }
    function = functions[activation]

    def values(x: np.ndarray) -> np.ndarray:
        with np.errstate(over='ignore', under='ignore'):
            return function(np.asarray(x, np.float64))

    return values


def interval(
    activation: str,
    slope: float,
    lowest: float,
    highest: float,
    tolerance: float,
    near: bool = False,
) -> tuple[float, float]:
    """The inputs outside of which a result limited to ``[lowest, highest]`` hardly changes.

    Args:
        activation, slope: The function.
        lowest, highest: Limits of the result.
        tolerance: How far the limited result may move beyond each end.
        near: Whether to end where the result meets a limit first on the way from zero, though a
            function that turns back, as silu does below -1.28, may come inside again far away.

    Returns:
        Both ends, the lower one at most 0, the upper one at least 0.
    """
    y = np.clip(curve(activation, slope)(_GRID), lowest, highest)
    middle = len(_GRID) // 2
    if near and lowest < y[middle] < highest:
        limited = (y == lowest) | (y == highest)
        left, right = np.flatnonzero(limited[:middle]), np.flatnonzero(limited[middle:])
        if len(left):
            y[: left[-1]] = y[left[-1]]
        if len(right):
            y[middle + right[0] :] = y[middle + right[0]]
    below = np.flatnonzero(np.abs(y - y[0]) > tolerance)
    above = np.flatnonzero(np.abs(y - y[-1]) > tolerance)
    if not len(below):
        return 0.0, 0.0
    first, last = max(below[0] - 1, 0), min(above[-1] + 1, len(_GRID) - 1)
    return min(float(_GRID[first]), 0.0), max(float(_GRID[last]), 0.0)
