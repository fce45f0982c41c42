"""What a float island may call: a property of the file, whoever wrote it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import first_line
from .fields import MAX_ITEMS
from .nodes import FloatCall
from .types import GraphError

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


_ARITHMETIC = frozenset(
    f'operator.{name}' for name in 'add sub mul truediv floordiv mod pow matmul iadd isub imul '
    'itruediv and_ or_ xor'.split()
)  # fmt: skip
_LARGEST = 2.0**53
_LARGEST_POWER = 64
_COUNTING = frozenset({'split', 'chunk', 'unbind'})
_SIZED_BY_VALUES = {'one_hot': 1, 'repeat_interleave': 1}
"""Functions whose result is as large as the values that they read say, unless this argument is a
number; by the last part of their names."""


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _leaves(item)
    elif isinstance(tree, slice):
        yield from (tree.start, tree.stop, tree.step)
    else:
        yield tree


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
    if node.kind == 'parameter' and (node.args or node.kwargs):
        raise GraphError(f'{node.name}: found a parameter with arguments, wanted none')
    for leaf in _leaves((node.args, dict(node.kwargs))):
        if isinstance(leaf, str) and _device_kind(leaf) not in ('', 'cpu'):
            raise GraphError(f'{node.name}: found the device {leaf!r}, wanted none or cpu')


def _device_kind(text: str) -> str:
    try:
        return torch.device(text).type
    except RuntimeError:
        return ''


def _check_plain(node: FloatCall, args: Sequence[Any]) -> None:
    """Return if arithmetic without tensors stays small: Python's own numbers grow without limit,
    and its texts and lists can be multiplied and filled in."""
    lengths = [len(arg) for arg in args if isinstance(arg, (tuple, list))]
    numbers = [arg for arg in args if isinstance(arg, (int, float))]
    small = all(abs(number) <= _LARGEST for number in numbers)  # not so for nan
    if node.target.endswith('pow'):
        small = small and all(abs(number) <= _LARGEST_POWER for number in numbers[1:])
    if lengths:
        named = node.target.rpartition('.')[2]
        if named in ('mul', 'imul'):
            small = small and lengths[0] * max([1, *numbers]) <= MAX_ITEMS
        else:
            small = small and named in ('add', 'iadd') and sum(lengths) <= MAX_ITEMS
    if not small or len(lengths) + len(numbers) != len(args):
        raise GraphError(f'{node.name}: found {node.target} of {str(args)[:60]}, wanted numbers')


def _check_pieces(node: FloatCall, named: str, args: Sequence[Any], kwargs: Any) -> None:
    """Return if a tensor is cut into no more pieces than anything else may have items."""
    x, *rest = args
    given = rest[0] if rest else None
    axis = rest[1] if len(rest) > 1 else kwargs.get('dim', 0)
    if named == 'unbind':
        axis = kwargs.get('dim', 0) if given is None else given
    elif given is None:
        given = next((v for k, v in kwargs.items() if k != 'dim'), None)
    if not isinstance(x, Tensor) or not isinstance(axis, int) or not -x.dim() <= axis < x.dim():
        raise GraphError(f'{node.name}: found {named} of {str(args)[:60]}, wanted a tensor')
    pieces = x.shape[axis]
    if named == 'chunk':
        pieces = given if isinstance(given, int) else MAX_ITEMS + 1
    elif named == 'split' and isinstance(given, int):
        pieces = -(-pieces // max(given, 1))
    elif named == 'split':
        pieces = len(given) if isinstance(given, (tuple, list)) else MAX_ITEMS + 1
    if pieces > MAX_ITEMS:
        raise GraphError(f'{node.name}: found {pieces} pieces, wanted at most {MAX_ITEMS}')


def _check_arguments(node: FloatCall, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    named = node.target.rpartition('.')[2]
    if node.kind == 'function' and node.target in _ARITHMETIC:
        if not any(isinstance(arg, Tensor) for arg in args):
            _check_plain(node, args)
    elif named in _COUNTING and args:
        _check_pieces(node, named, args, kwargs)
    elif named in _SIZED_BY_VALUES:
        place = _SIZED_BY_VALUES[named]
        others = [*args[place:], *kwargs.values()]
        number = next((v for v in others if isinstance(v, int)), -1)
        if number < 0 or any(isinstance(v, Tensor) for v in others):
            raise GraphError(f'{node.name}: found {named} by values, wanted a number of results')


class Islands(Protocol):
    """What has the modules and parameters that float steps name: a detector."""

    def get_submodule(self, target: str) -> Any:
        """The module at a dotted path."""


def call(
    node: FloatCall, args: Sequence[Any], kwargs: Mapping[str, Any], islands: Islands | None
) -> Any:
    """Result of the float step for the given values of its arguments.

    Raises:
        GraphError: whatever goes wrong inside, naming the node.
    """
    try:
        if node.kind == 'function':
            _check_arguments(node, args, kwargs)
            return FUNCTIONS[node.target](*args, **kwargs)
        if node.kind == 'method':
            x = args[0]
            if not isinstance(x, Tensor) and (type(x), node.target) != (torch.Size, 'numel'):
                raise GraphError(f'{node.name}: found {type(x).__name__}, wanted a tensor')
            _check_arguments(node, args, kwargs)
            return getattr(x, node.target)(*args[1:], **kwargs)
        if islands is None:
            raise GraphError(f'{node.name}: found no detector, wanted one with {node.target!r}')
        if node.kind == 'parameter':
            owner, _, leaf = node.target.rpartition('.')
            module = islands.get_submodule(owner)
            return {**module._parameters, **module._buffers}[leaf]
        return islands.get_submodule(node.target)(*args, **kwargs)
    except GraphError:
        raise
    except Exception as error:  # of a library: the arguments are a file's
        reason = first_line(error)
        raise GraphError(
            f'{node.name}: found {node.kind} {node.target} that fails ({reason}), wanted one that '
            'fits its arguments'
        ) from error
