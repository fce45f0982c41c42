"""Reads modules and functions of PyTorch, MMCV and MMDetection as the activations of the graph."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn.bricks import HSigmoid, HSwish, Swish
from torch import fx, nn
from torch.nn import functional as F

NON_NEGATIVE = frozenset({'relu', 'relu6', 'sigmoid', 'hardsigmoid', 'exp'})
"""Activations whose results cannot be below zero."""

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: 'relu', nn.ReLU6: 'relu6', nn.SiLU: 'silu', Swish: 'silu', nn.Sigmoid: 'sigmoid',
    nn.Tanh: 'tanh', nn.Hardswish: 'hardswish', HSwish: 'hardswish', nn.Mish: 'mish',
    nn.Hardsigmoid: 'hardsigmoid',
}  # fmt: skip
WHOLE = tuple(_MODULES)
"""Modules that are one activation, even those that have others inside."""
_FUNCTIONS: dict[Any, str] = {
    F.relu: 'relu', torch.relu: 'relu', 'relu': 'relu', 'relu_': 'relu', F.relu6: 'relu6',
    F.silu: 'silu', torch.sigmoid: 'sigmoid', F.sigmoid: 'sigmoid', 'sigmoid': 'sigmoid',
    'sigmoid_': 'sigmoid', torch.tanh: 'tanh', F.tanh: 'tanh', 'tanh': 'tanh', F.mish: 'mish',
    F.hardswish: 'hardswish', F.hardsigmoid: 'hardsigmoid', torch.exp: 'exp', 'exp': 'exp',
}  # fmt: skip

Activation = dict[str, Any]
"""Fields ``activation`` and perhaps ``slope`` of the graph's nodes."""


def of_module(module: nn.Module) -> Activation | None:
    """The activation that ``module`` computes; None if it computes something else."""
    if isinstance(module, nn.LeakyReLU):
        return {'activation': 'leaky_relu', 'slope': float(module.negative_slope)}
    if isinstance(module, nn.PReLU) and module.weight.numel() == 1:
        return {'activation': 'leaky_relu', 'slope': float(module.weight.detach())}
    if isinstance(module, nn.ELU):
        return {'activation': 'elu', 'slope': float(module.alpha)}
    if isinstance(module, nn.GELU):
        return _gelu(module.approximate)
    if isinstance(module, HSigmoid):
        limits = module.bias, module.divisor, module.min_value, module.max_value
        return {'activation': 'hardsigmoid'} if limits == (3.0, 6.0, 0.0, 1.0) else None
    found = next((name for kind, name in _MODULES.items() if isinstance(module, kind)), None)
    return None if found is None else {'activation': found}


def of_call(node: fx.Node) -> Activation | None:
    """The activation that a call of a function or method computes; None if it is none."""
    options: dict[str, Any] = dict(node.kwargs)
    second: Any = node.args[1] if len(node.args) > 1 else None
    if node.target is F.leaky_relu:
        slope = options.get('negative_slope', 0.01 if second is None else second)
        return {'activation': 'leaky_relu', 'slope': float(slope)}
    if node.target is F.elu:
        return {
            'activation': 'elu',
            'slope': float(options.get('alpha', 1.0 if second is None else second)),
        }
    if node.target is F.gelu:
        return _gelu(options.get('approximate', 'none'))
    found = _FUNCTIONS.get(node.target) if len(node.args) == 1 or second in (True, False) else None
    return None if found is None else {'activation': found}


def _gelu(approximate: str) -> Activation:
    return {'activation': 'gelu_tanh' if approximate == 'tanh' else 'gelu'}
