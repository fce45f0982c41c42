"""Activations as ONNX operators, in the forms that runtimes recognize and fuse."""

from __future__ import annotations

import math

from .builder import OnnxBuilder

_LIMITS = -87.0, 88.0
"""Of the exponential's argument, as the graph defines it."""


def activated(g: OnnxBuilder, v: str, activation: str, slope: float = 0.0) -> str:
    """Name of the activation of the float32 tensor ``v``.

    Args:
        g: Where to.
        v: Name of the values.
        activation: One of :data:`mmclipq.graph.ir.ACTIVATIONS`.
        slope: Factor of negative values in ``leaky_relu``, or ``elu``'s alpha.
    """
    match activation:
        case 'identity':
            return v
        case 'relu6':
            return g.op('Clip', v, g.floats(0.0), g.floats(6.0))
        case 'leaky_relu':
            return g.op('LeakyRelu', v, alpha=slope)
        case 'elu':
            return g.op('Elu', v, alpha=slope)
        case 'hardsigmoid':
            return g.op('HardSigmoid', v, alpha=1 / 6, beta=0.5)
        case 'exp':
            return g.op('Exp', g.op('Clip', v, *map(g.floats, _LIMITS)))
        case 'silu':
            return g.op('Mul', v, g.op('Sigmoid', v))
        case 'mish':
            return g.op('Mul', v, g.op('Tanh', g.op('Softplus', v)))
        case 'gelu':
            share = g.op('Erf', g.op('Div', v, g.floats(math.sqrt(2))))
            return _half_of(g, v, share)
        case 'gelu_tanh':
            cubic = g.op('Mul', g.op('Pow', v, g.floats(3.0)), g.floats(0.044715))
            u = g.op('Mul', g.op('Add', v, cubic), g.floats(math.sqrt(2 / math.pi)))
            return _half_of(g, v, g.op('Tanh', u))
    return g.op(_OPERATORS[activation], v)


def _half_of(g: OnnxBuilder, v: str, share: str) -> str:
    """``0.5 * v * (1 + share)``."""
    return g.op('Mul', g.op('Mul', v, g.op('Add', share, g.floats(1.0))), g.floats(0.5))


_OPERATORS = {
    'relu': 'Relu', 'sigmoid': 'Sigmoid', 'tanh': 'Tanh', 'hardswish': 'HardSwish',
}  # fmt: skip
