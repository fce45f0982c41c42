"""Activations in float32 whose every operation is written down: what kernels must equal.

Each line below is one rounded float32 operation, none fused into another, so any device gives the
same bits: ``exp`` of a library would not. Divisions and the rest are IEEE 754's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOG2_E = 1.4426950216293335
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.1219444170128554e-4
_EXP_LOWEST, _EXP_HIGHEST = -87.0, 88.0
_EXP_POLYNOMIAL = (
    0.0013933652080595493, 0.008363181725144386, 0.04166646674275398, 0.16666576266288757, 0.5,
)  # fmt: skip
"""Of ``(exp(r) - 1 - r) / r**2`` on ``|r| <= log(2) / 2``, the highest power first; with it
``exp_`` is within 1.5 units in the last place. All are float32 numbers."""

_ERF_POLYNOMIAL = (
    1.0614054203033447, -1.453152060508728, 1.421413779258728, -0.2844967246055603,
    0.2548295855522156,
)  # fmt: skip
_ERF_SCALE = 0.32759109139442444
"""Abramowitz and Stegun 7.1.26: ``erfc(z) = t * polynomial(t) * exp(-z**2)``, ``t = 1 / (1 + scale
* z)``, for positive ``z``; at most 1.5e-7 off."""


def exp_(x: Tensor) -> Tensor:
    """``exp(x)`` of float32 ``x``, limited to ``[-87, 88]`` first, so neither zero nor infinite."""
    x = x.clamp(_EXP_LOWEST, _EXP_HIGHEST)
    n = (x * _LOG2_E).round_()
    r = x - n * _LN2_HIGH  # exact
    r = r - n * _LN2_LOW
    p = torch.full_like(r, _EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        p = p * r
        p = p + coefficient
    p = p * (r * r)
    p = p + r
    p = p + 1.0
    return p * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return (exp_(-x) + 1.0).reciprocal()


def silu(x: Tensor) -> Tensor:
    """``x / (1 + exp(-x))``, also called Swish."""
    return x / (exp_(-x) + 1.0)


def tanh(x: Tensor) -> Tensor:
    """``2 / (1 + exp(-2 * x)) - 1``."""
    return (exp_(x * -2.0) + 1.0).reciprocal() * 2.0 - 1.0


def gelu(x: Tensor) -> Tensor:
    """``x`` times the normal distribution's share below ``x``."""
    z = x.abs() * 0.7071067690849304
    t = (z * _ERF_SCALE + 1.0).reciprocal()
    p = torch.full_like(t, _ERF_POLYNOMIAL[0])
    for coefficient in _ERF_POLYNOMIAL[1:]:
        p = p * t
        p = p + coefficient
    p = p * t
    p = p * exp_(-(z * z))
    above = p * 0.5  # the share beyond |x|
    return x * torch.where(x < 0, above, 1.0 - above)


def gelu_tanh(x: Tensor) -> Tensor:
    """The ``tanh`` approximation of :func:`gelu`, as ``x / (1 + exp(-2 * u))``."""
    u = x * x
    u = u * 0.044714998453855515
    u = u + 1.0
    u = u * x
    return x / (exp_(u * -1.5957691669464111) + 1.0)


def mish(x: Tensor) -> Tensor:
    """``x * tanh(log(1 + exp(x)))``, as a quotient of ``exp(x)``'s polynomials."""
    e = exp_(x.clamp(max=20.0))  # from there on it is x itself
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def elu(x: Tensor, alpha: float) -> Tensor:
    """``x``, or ``alpha * (exp(x) - 1)`` below zero."""
    return torch.where(x > 0, x, (exp_(x) - 1.0) * alpha)


def hardsigmoid(x: Tensor) -> Tensor:
    """``clip(x + 3, 0, 6) / 6``."""
    return (x + 3.0).clamp_(0.0, 6.0).mul_(0.1666666716337204)


def hardswish(x: Tensor) -> Tensor:
    """``x * hardsigmoid(x)``."""
    return x * hardsigmoid(x)


def activate(v: Tensor, activation: str, parameter: float = 0.0) -> Tensor:
    """Activation of float32 ``v`` of any shape, as every backend computes it.

    Args:
        v: Values; may be written to.
        activation: One of :data:`mmclipq.graph.ir.ACTIVATIONS`.
        parameter: Slope of ``leaky_relu``'s negative side, or ``elu``'s alpha.
    """
    match activation:
        case 'identity':
            return v
        case 'relu':
            return v.clamp_(min=0)
        case 'relu6':
            return v.clamp_(0, 6)
        case 'leaky_relu':
            return torch.where(v > 0, v, v * parameter)
        case 'elu':
            return elu(v, parameter)
    return _FUNCTIONS[activation](v)


_FUNCTIONS = {
    'silu': silu, 'sigmoid': sigmoid, 'tanh': tanh, 'hardswish': hardswish,
    'hardsigmoid': hardsigmoid, 'gelu': gelu, 'gelu_tanh': gelu_tanh, 'mish': mish, 'exp': exp_,
}  # fmt: skip
