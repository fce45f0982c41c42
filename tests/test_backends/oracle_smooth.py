"""The activations' float32 operations once more, written with numpy alone."""

import numpy as np

f = np.float32


def _exp(x):
    x = np.minimum(np.maximum(x, f(-87)), f(88))
    n = np.rint(x * f(1.4426950408889634))
    r = (x - n * f(0.693359375)) - n * f(-2.12194440e-4)
    p = np.full_like(r, f(0.0013933652080595493))
    for c in (0.008363181725144386, 0.04166646674275398, 0.16666576266288757, 0.5):
        p = p * r + f(c)
    p = (p * (r * r) + r) + f(1)
    return p * np.exp2(n.astype(np.float64)).astype(f)


def _gelu(x):
    z = np.abs(x) * f(np.sqrt(0.5))
    t = f(1) / (z * f(0.3275911) + f(1))
    p = np.full_like(t, f(1.061405429))
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + f(c)
    beyond = ((p * t) * _exp(-(z * z))) * f(0.5)
    return x * np.where(x < 0, beyond, f(1) - beyond)


def _mish(x):
    e = _exp(np.minimum(x, f(20)))
    n = e * (e + f(2))
    return x * (n / (n + f(2)))


def _hardsigmoid(x):
    return np.clip(x + f(3), f(0), f(6)) * f(1 / 6)


def smooth_activation(x, name, parameter):
    """Activation ``name`` of float32 ``x``, one rounded operation after another."""
    with np.errstate(over='ignore'):
        result = {
            'exp': lambda: _exp(x),
            'sigmoid': lambda: f(1) / (_exp(-x) + f(1)),
            'silu': lambda: x / (_exp(-x) + f(1)),
            'tanh': lambda: f(2) / (_exp(x * f(-2)) + f(1)) - f(1),
            'gelu': lambda: _gelu(x),
            'gelu_tanh': lambda: (
                x / (_exp((((x * x) * f(0.044715) + f(1)) * x) * f(-1.5957691216057308)) + f(1))
            ),
            'mish': lambda: _mish(x),
            'elu': lambda: np.where(x > 0, x, (_exp(x) - f(1)) * f(parameter)),
            'hardsigmoid': lambda: _hardsigmoid(x),
            'hardswish': lambda: x * _hardsigmoid(x),
        }[name]()
    assert result.dtype == np.float32
    return result
