"""Float steps of a graph in standard ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmcv.cnn import Scale
from mmdet.models.necks.ssd_neck import L2Norm
from torch import nn

from ..graph import ir
from .activations import activated
from .builder import ExportError, OnnxBuilder
from .operators import group_norm, layer_norm

_SAME = ('float', 'contiguous', 'type_as')
_UNARY = {'exp': 'Exp', 'sqrt': 'Sqrt', 'abs': 'Abs', 'neg': 'Neg'}
_ACTIVATIONS = {
    'relu', 'relu6', 'sigmoid', 'tanh', 'silu', 'hardswish', 'hardsigmoid', 'mish',
}  # fmt: skip
"""Functions and methods that are activations without options."""
_BINARY = {
    'add': 'Add', 'iadd': 'Add', 'sub': 'Sub', 'isub': 'Sub', 'mul': 'Mul', 'imul': 'Mul',
    'truediv': 'Div', 'div': 'Div', 'pow': 'Pow', 'matmul': 'MatMul',
}  # fmt: skip


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def _scale(g: OnnxBuilder, module: Scale, x: str) -> str:
    return g.op('Mul', x, g.constant(_array(module.scale)))


def _group_norm(g: OnnxBuilder, module: nn.GroupNorm, x: str) -> str:
    weight, bias = _affine(module, module.num_channels)
    return group_norm(g, x, module.num_groups, module.eps, weight, bias, g.rank_of(x))


def _affine(module: nn.GroupNorm | nn.LayerNorm, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a norm, which may have none."""
    given = module.weight, module.bias
    weight, bias = (
        np.full(channels, 1.0 - index, np.float32) if value is None else _array(value)
        for index, value in enumerate(given)
    )
    return weight, bias


def _l2_norm(g: OnnxBuilder, module: L2Norm, x: str) -> str:
    total = g.op('ReduceSum', g.op('Mul', x, x), g.integers(1), keepdims=1)
    norm = g.op('Add', g.op('Sqrt', total), g.floats(module.eps))
    weight = g.constant(_array(module.weight.view(1, -1, 1, 1)))
    return g.op('Div', g.op('Mul', weight, x), norm)


def _conv(g: OnnxBuilder, module: nn.Conv2d, x: str) -> str:
    if module.padding_mode != 'zeros' or isinstance(module.padding, str):
        raise ExportError(f'{module}: found padding that ONNX convolutions do not have')
    extra = [] if module.bias is None else [g.constant(_array(module.bias))]
    return g.op(
        'Conv', x, g.constant(_array(module.weight)), *extra,
        strides=list(module.stride), pads=list(module.padding) * 2,
        dilations=list(module.dilation), group=module.groups,
    )  # fmt: skip


def _batch_norm(g: OnnxBuilder, module: nn.BatchNorm2d, x: str) -> str:
    values = (module.weight, module.bias, module.running_mean, module.running_var)
    names = [g.constant(_array(value)) for value in values]
    return g.op('BatchNormalization', x, *names, epsilon=module.eps)


def _layer_norm(g: OnnxBuilder, module: nn.LayerNorm, x: str) -> str:
    if len(module.normalized_shape) != 1:
        raise ExportError(f'{module}: found a norm over several axes, wanted one over the last')
    weight, bias = _affine(module, module.normalized_shape[0])
    return layer_norm(g, x, module.eps, weight, bias, channels_last=True)


def _gelu(g: OnnxBuilder, module: nn.GELU, x: str) -> str:
    return activated(g, x, 'gelu_tanh' if module.approximate == 'tanh' else 'gelu')


def _average(g: OnnxBuilder, module: nn.AdaptiveAvgPool2d, x: str) -> str:
    if module.output_size not in (1, (1, 1)):
        raise ExportError(f'{module}: found an average that ONNX does not have')
    return g.op('GlobalAveragePool', x)


def _plain_activation(name: str) -> Callable[[OnnxBuilder, Any, str], str]:
    return lambda g, module, x: activated(g, x, name)


MODULES: dict[str, Callable[[OnnxBuilder, Any, str], str]] = {
    'Scale': _scale,
    'GroupNorm': _group_norm,
    'L2Norm': _l2_norm,
    'Conv2d': _conv,
    'ClipConv': _conv,
    'BatchNorm2d': _batch_norm,
    'LayerNorm': _layer_norm,
    'AdaptiveAvgPool2d': _average,
    'GELU': _gelu,
    'ELU': lambda g, module, x: activated(g, x, 'elu', module.alpha),
    'LeakyReLU': lambda g, module, x: activated(g, x, 'leaky_relu', module.negative_slope),
    **{name: _plain_activation(name.lower()) for name in (
        'ReLU', 'ReLU6', 'Sigmoid', 'Tanh', 'SiLU', 'Hardswish', 'Hardsigmoid', 'Mish',
    )},
    'Swish': _plain_activation('silu'),
    'HSwish': _plain_activation('hardswish'),
    'Identity': lambda g, module, x: x,
    'Dropout': lambda g, module, x: x,
}  # fmt: skip
"""Translations of modules, by class name."""


def _refuse(node: ir.FloatCall, what: str) -> ExportError:
    return ExportError(
        f'{node.name}: found the float step {what}, which has no ONNX form here; quantize the '
        'detector without it, or run the .clipq file with --backend cpu'
    )


def _getitem(g: OnnxBuilder, node: ir.FloatCall, x: str, index: Any) -> str:
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(item, slice) and item is not Ellipsis for item in index):
        raise _refuse(node, f'indexing by {index}')
    starts, ends, axes, steps = [], [], [], []
    for place, item in enumerate(index):
        if item is Ellipsis or item == slice(None):
            continue
        if any(not (v is None or isinstance(v, int)) for v in (item.start, item.stop, item.step)):
            raise _refuse(node, f'indexing by {index}')
        after = Ellipsis in index and place > index.index(Ellipsis)
        axes.append(place - len(index) if after else place)
        starts.append(item.start or 0)
        ends.append(np.iinfo(np.int64).max if item.stop is None else item.stop)
        steps.append(item.step or 1)
    if not axes:
        return x
    return g.op('Slice', x, *(g.integers(*v) for v in (starts, ends, axes, steps)))


def _plain(values: Any) -> bool:
    return next(ir.iter_refs(values), None) is None


def _function(g: OnnxBuilder, node: ir.FloatCall, values: Mapping[str, str]) -> str:
    """Translate a function or method, whose first argument is the tensor."""
    name = node.target.rpartition('.')[2].rstrip('_')
    kwargs = {key: value for key, value in node.kwargs if key != 'inplace'}
    args = list(node.args)
    if name == 'cat':
        tensors, dim = args[0], kwargs.get('dim', args[1] if len(args) > 1 else 0)
        return g.op('Concat', *(values[ref.name] for ref in tensors), axis=dim)
    if not args or not isinstance(args[0], ir.Ref):
        if name in _BINARY and isinstance(args[0], (int, float)) and isinstance(args[1], ir.Ref):
            return g.op(_BINARY[name], g.floats(args[0]), values[args[1].name])
        raise _refuse(node, node.target)
    x, rest = values[args[0].name], args[1:]
    if name in _SAME:
        return x
    if name in _UNARY and not rest and not kwargs:
        return g.op(_UNARY[name], x)
    if name in _BINARY and len(rest) == 1 and not kwargs:
        other = rest[0]
        if isinstance(other, ir.Ref):
            return g.op(_BINARY[name], x, values[other.name])
        if isinstance(other, (int, float)):
            return g.op(_BINARY[name], x, g.floats(other))
    if name in _ACTIVATIONS and not rest and not kwargs:
        return activated(g, x, name)
    if name == 'gelu' and not rest:
        return activated(g, x, 'gelu_tanh' if kwargs.get('approximate') == 'tanh' else 'gelu')
    if name == 'getitem':
        return _getitem(g, node, x, rest[0])
    if name in ('permute', 'reshape', 'view') and not kwargs and _plain(rest):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        if name == 'permute':
            return g.op('Transpose', x, perm=list(sizes))
        return g.op('Reshape', x, g.integers(*sizes))
    if name == 'softmax' and not (set(kwargs) - {'dim'}):
        return g.op('Softmax', x, axis=kwargs.get('dim', rest[0] if rest else -1))
    if name == 'leaky_relu':
        slope = kwargs.get('negative_slope', rest[0] if rest else 0.01)
        return activated(g, x, 'leaky_relu', slope)
    raise _refuse(node, node.target)


def translate(
    g: OnnxBuilder, node: ir.FloatCall, values: Mapping[str, str], islands: nn.Module | None
) -> str:
    """Add the float step ``node`` and return the name of its result.

    Args:
        g: Where to.
        node: The step.
        values: Names of the float32 ONNX tensors by graph tensor.
        islands: Holder of the modules and parameters that steps name.

    Raises:
        ExportError: if it has no standard form, naming the node.
    """
    if node.kind in ('function', 'method'):
        return _function(g, node, values)
    if islands is None:
        raise _refuse(node, f'{node.target} without the detector that holds it')
    owner, _, leaf = node.target.rpartition('.')
    if node.kind == 'parameter':
        return g.constant(_array(getattr(islands.get_submodule(owner), leaf)))
    module = islands.get_submodule(node.target)
    make = MODULES.get(type(module).__name__)
    if make is None or len(node.args) != 1 or not isinstance(node.args[0], ir.Ref):
        raise _refuse(node, type(module).__name__)
    if isinstance(module, torch.nn.BatchNorm2d) and not module.affine:
        raise _refuse(node, 'BatchNorm2d without weights')
    return make(g, module, values[node.args[0].name])
