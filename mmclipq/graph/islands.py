"""What a float island may call: a property of the file, whoever wrote it."""

from __future__ import annotations

import math
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
        'add', 'sub', 'mul', 'truediv', 'floordiv', 'mod', 'pow', 'matmul', 'neg', 'abs', 'iadd',
        'isub', 'imul', 'itruediv', 'getitem', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'and_', 'or_',
        'xor', 'invert',
    )},
    **{f'math.{name}': getattr(math, name) for name in ('ceil', 'floor', 'sqrt', 'log', 'exp')},
    **{f'torch.{name}': getattr(torch, name) for name in (
        'add', 'sub', 'mul', 'div', 'true_divide', 'floor_divide', 'neg', 'abs', 'sign', 'square',
        'pow', 'sqrt', 'rsqrt', 'reciprocal', 'exp', 'log', 'log2', 'log1p', 'sin', 'cos', 'tanh',
        'erf', 'sigmoid', 'softmax', 'log_softmax', 'relu', 'clamp', 'clip', 'floor', 'ceil',
        'round', 'maximum', 'minimum', 'where', 'mean', 'sum', 'prod', 'cumsum', 'max', 'min',
        'amax', 'amin', 'argmax', 'argmin', 'topk', 'sort', 'std', 'var', 'norm', 'matmul', 'bmm',
        'baddbmm', 'addmm', 'einsum', 'cat', 'concat', 'stack', 'split', 'chunk', 'unbind',
        'flatten', 'reshape', 'permute', 'transpose', 'swapaxes', 'movedim', 'squeeze',
        'unsqueeze', 'narrow', 'gather', 'index_select', 'roll', 'flip', 'tile',
        'repeat_interleave', 'meshgrid', 'zeros_like', 'ones_like', 'full_like', 'eq', 'ne', 'lt',
        'le', 'gt', 'ge', 'logical_and', 'logical_or', 'logical_not', 'nan_to_num', 'cdist',
    )},
    **{f'torch.nn.functional.{name}': getattr(F, name) for name in (
        'relu', 'relu6', 'leaky_relu', 'prelu', 'elu', 'celu', 'selu', 'silu', 'mish', 'gelu',
        'hardswish', 'hardsigmoid', 'hardtanh', 'softplus', 'logsigmoid', 'sigmoid', 'tanh',
        'softmax', 'log_softmax', 'glu', 'normalize', 'layer_norm', 'group_norm', 'batch_norm',
        'instance_norm', 'dropout', 'interpolate', 'grid_sample', 'max_pool2d', 'avg_pool2d',
        'adaptive_avg_pool2d', 'adaptive_max_pool2d', 'pad', 'unfold', 'fold', 'pixel_shuffle',
        'pixel_unshuffle', 'conv2d', 'conv_transpose2d', 'linear', 'embedding', 'one_hot',
        'cosine_similarity', 'scaled_dot_product_attention',
    )},
    'builtins.getattr': getattr,
}  # fmt: skip
"""Functions that a float island may call, by the name that an artifact stores. They compute from
their arguments alone, and read or write nothing else."""

FUNCTION_NAMES = {function: name for name, function in FUNCTIONS.items()}

METHODS = frozenset(
    'add add_ sub sub_ mul mul_ div div_ neg abs sign square pow sqrt rsqrt reciprocal exp log '
    'sin cos tanh tanh_ sigmoid sigmoid_ softmax log_softmax relu relu_ clamp clamp_ clip floor '
    'ceil round maximum minimum where mean sum prod cumsum max min amax amin argmax argmin topk '
    'sort std var norm matmul bmm mm view reshape permute transpose swapaxes movedim flatten '
    'unflatten contiguous clone detach size dim numel squeeze unsqueeze split chunk unbind narrow '
    'select expand expand_as repeat repeat_interleave tile roll flip gather index_select unfold '
    'masked_fill masked_fill_ float bool int long to type_as eq ne lt le gt ge logical_and '
    'logical_or logical_not all any new_zeros new_ones new_full new_tensor fill_ zero_'.split()
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
