"""What a float island may call: a property of the file, whoever wrote it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.nn import functional as F

from .nodes import (
    FloatCall,
)
from .types import (
    GraphError,
)

FUNCTIONS: dict[str, Any] = {
    **{f'operator.{name}': getattr(operator, name) for name in (
        'add', 'sub', 'mul', 'truediv', 'floordiv', 'neg', 'iadd', 'isub', 'imul', 'getitem',
    )},
    **{f'torch.{name}': getattr(torch, name) for name in (
        'add', 'sub', 'mul', 'div', 'cat', 'stack', 'split', 'chunk', 'flatten', 'reshape',
        'permute', 'transpose', 'squeeze', 'unsqueeze', 'sigmoid', 'softmax', 'tanh', 'exp',
        'relu', 'clamp', 'mean', 'sum', 'matmul', 'pow', 'sqrt', 'max', 'min', 'abs', 'rsqrt',
    )},
    **{f'torch.nn.functional.{name}': getattr(F, name) for name in (
        'relu', 'relu6', 'leaky_relu', 'silu', 'gelu', 'hardswish', 'hardsigmoid', 'sigmoid',
        'interpolate', 'max_pool2d', 'avg_pool2d', 'adaptive_avg_pool2d', 'pad', 'normalize',
        'softmax', 'unfold', 'pixel_shuffle', 'conv2d', 'linear',
    )},
    'builtins.getattr': getattr,
}  # fmt: skip
"""Functions that a float island may call, by the name that an artifact stores."""

FUNCTION_NAMES = {function: name for name, function in FUNCTIONS.items()}

METHODS = frozenset(
    'add add_ sub sub_ mul mul_ div div_ view reshape permute transpose flatten contiguous size '
    'dim squeeze unsqueeze sigmoid sigmoid_ softmax tanh exp relu relu_ clamp clamp_ mean sum pow '
    'sqrt max min abs split chunk expand expand_as repeat float type_as new_zeros '
    'new_tensor'.split()
)
"""Tensor methods that a float island may call."""

SHAPE_ATTRIBUTES = frozenset({'shape', 'device', 'dtype', 'requires_grad', 'ndim'})
"""Attributes of a tensor that a float island may read; they are the same for codes."""


def check_call(node: FloatCall) -> None:
    """Return if the float island calls nothing but what a traced detector may call.

    Graphs come from files: an attribute of one's choice reaches any module of the process.

    Raises:
        GraphError: naming the node and its target.
    """
    known = {'function': FUNCTIONS, 'method': METHODS}
    allowed = node.kind in ('module', 'parameter') or node.target in known.get(node.kind, ())
    if node.target == 'builtins.getattr':
        allowed = any(node.args[1:] == (name,) for name in SHAPE_ATTRIBUTES)
    if not allowed:
        raise GraphError(
            f'{node.name}: found {node.kind} {node.target!r}, which no float island may call'
        )
