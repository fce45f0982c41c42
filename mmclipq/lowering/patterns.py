"""Reads torch.fx nodes as the few operations that the integer graph knows."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from mmcv.cnn import Scale
from mmcv.cnn.bricks import DropPath
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import fx, nn
from torch.nn import functional as F

from ..graph.islands import FUNCTION_NAMES, SHAPE_ATTRIBUTES
from ..layers import ClipConv, ClipConvTranspose, ClipLinear
from . import activations
from .nodes import name_of, tensor
from .tracer import BOOKKEEPING, REASON, SHAPE

_ADDS = {operator.add, operator.iadd, torch.add}
_MULS = {operator.mul, operator.imul, torch.mul}
_CONCATS = {torch.cat, torch.concat}
_NON_NEGATIVE = {
    torch.sigmoid, F.sigmoid, torch.softmax, F.softmax, torch.exp, torch.relu, F.relu, F.relu6,
    F.hardsigmoid, torch.abs, nn.Sigmoid, nn.Softmax, nn.ReLU, nn.ReLU6, nn.Hardsigmoid, 'sigmoid',
    'sigmoid_', 'softmax', 'exp', 'relu', 'relu_', 'abs',
}  # fmt: skip

MOVED = 'moves float32 values, computes nothing'
"""Reason of a step that gives its operand's values in another shape or order."""
_MOVES = frozenset(
    'view reshape permute transpose swapaxes movedim flatten unflatten squeeze unsqueeze expand '
    'expand_as split chunk unbind narrow select getitem repeat tile roll flip stack clone'.split()
)


@dataclass(frozen=True)
class Op:
    """One fx node in the graph's terms.

    Attributes:
        kind: ``conv``, ``conv_transpose``, ``linear``, ``norm``, ``scale``, ``activation``,
            ``add``, ``mul``, ``group_norm``, ``layer_norm``, ``avg_pool``, ``concat``,
            ``max_pool``, ``upsample``, ``slice``, ``flatten``, ``roi_align``, ``identity`` or
            ``float``.
        operands: The fx nodes read as codes, then those that an upsampling or RoIAlign reads beside
            them.
        module: The layer, for products and norms.
        options: Arguments for the graph's node, or ``reason`` for ``float``.
    """

    kind: str
    operands: tuple[fx.Node, ...] = ()
    module: nn.Module | None = None
    options: tuple[tuple[str, Any], ...] = ()


def _op(kind: str, *operands: fx.Node, module: nn.Module | None = None, **options: Any) -> Op:
    return Op(kind, operands, module, tuple(options.items()))


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def same_padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Rows and columns of zeros on each side; None if the layer pads otherwise."""
    if layer.padding == 'valid':
        return (0, 0)
    if layer.padding == 'same':
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(count % 2 for count in total):
            return None
        padding = total[0] // 2, total[1] // 2
    else:
        padding = _pair(layer.padding)
    return padding if layer.padding_mode == 'zeros' or padding == (0, 0) else None


def _read_module(node: fx.Node, module: nn.Module) -> Op:
    x = node.args[0] if node.args else None
    name = type(module).__name__
    if type(module) is SingleRoIExtractor and len(node.args) == 2 and not node.kwargs:
        return _read_roi_align(module, *node.args)
    if not isinstance(x, fx.Node):
        return _op('float', reason=f'{name} has no int8 form')
    if isinstance(module, ClipConv):
        if same_padding(module) is None:
            return _op('float', reason=f'{module.padding_mode} padding of uneven or copied rows')
        return _op('conv', x, module=module)
    if isinstance(module, ClipConvTranspose) and len(node.args) + len(node.kwargs) == 1:
        return _op('conv_transpose', x, module=module)
    if isinstance(module, ClipLinear):
        return _op('linear', x, module=module)
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return _op('float', reason=f'{name} is skipped or computes more than a plain layer')
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and module.track_running_stats:
        return _op('norm', x, module=module)
    if type(module) is Scale:
        return _op('scale', x, factor=float(module.scale.detach()))
    if isinstance(module, nn.GroupNorm):
        return _op('group_norm', x, module=module)
    # Of four axes the graph's channels are the second, the layer's the last.
    rows = len(node.meta.get(SHAPE, ())) in (2, 3)
    if type(module) is nn.LayerNorm and rows and len(module.normalized_shape) == 1:
        return _op('layer_norm', x, module=module)
    if (activation := activations.of_module(module)) is not None:
        return _op('activation', x, **activation)
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)):
        return _op('identity', x)
    if isinstance(module, nn.MaxPool2d) and not module.return_indices:
        return _read_max_pool(x, vars(module))
    if type(module) is nn.AvgPool2d and module.divisor_override is None:
        return _read_avg_pool(x, vars(module))
    if isinstance(module, nn.AdaptiveAvgPool2d) and _pair(module.output_size) == (1, 1):
        return _op('avg_pool', x)
    if isinstance(module, nn.Upsample):
        return _read_upsample(x, module.size, module.scale_factor, module.mode)
    return _op('float', reason=f'{name} has no int8 form')


def _read_roi_align(extractor: SingleRoIExtractor, levels: Any, rois: Any) -> Op:
    layers = list(extractor.roi_layers)
    first = layers[0]
    for layer in layers:
        plain = type(layer) is RoIAlign and layer.pool_mode == 'avg' and not layer.use_torchvision
        if not plain or (layer.output_size, layer.sampling_ratio, layer.aligned) != (
            first.output_size,
            first.sampling_ratio,
            first.aligned,
        ):
            return _op('float', reason=f'{type(layer).__name__} is no plain average RoIAlign')
    return _op(
        'roi_align',
        *map(tensor, (*levels, rois)),
        output_size=_pair(first.output_size),
        scales=tuple(float(layer.spatial_scale) for layer in layers[: len(levels)]),
        sampling_ratio=int(first.sampling_ratio),
        aligned=bool(first.aligned),
        finest_scale=float(extractor.finest_scale),
    )


def _read_max_pool(x: fx.Node, options: dict[str, Any]) -> Op:
    return _op(
        'max_pool',
        x,
        kernel=_pair(options['kernel_size']),
        stride=_pair(options['stride'] or options['kernel_size']),
        padding=_pair(options['padding']),
        dilation=_pair(options['dilation']),
        ceil_mode=bool(options['ceil_mode']),
    )


def _read_avg_pool(x: fx.Node, options: dict[str, Any]) -> Op:
    return _op(
        'avg_pool',
        x,
        kernel=_pair(options['kernel_size']),
        stride=_pair(options['stride'] or options['kernel_size']),
        padding=_pair(options['padding']),
        ceil_mode=bool(options['ceil_mode']),
        count_padding=bool(options['count_include_pad']),
    )


def _is_number(value: Any) -> bool:
    """Whether a traced value is a number, such as a size, and no tensor."""
    if not isinstance(value, fx.Node):
        return not isinstance(value, (tuple, list)) or all(_is_number(item) for item in value)
    if value.target in ('size', 'dim', 'numel'):
        return True
    if value.target is getattr:
        return value.args[1] in SHAPE_ATTRIBUTES
    inputs = value.all_input_nodes
    return value.op == 'call_function' and bool(inputs) and all(map(_is_number, inputs))


def _read_slice(index: Any) -> dict[str, Any] | None:
    """Start and step of the rows and columns that an index takes; None if it takes others."""
    if not isinstance(index, tuple) or not 2 <= len(index) <= 4:
        return None
    *first, rows, columns = index
    whole = all(part is Ellipsis or part == slice(None) for part in first)
    if not whole or len(first) != (1 if Ellipsis in first else 2):
        return None
    parts = [rows, columns]
    if not all(isinstance(part, slice) and part.stop is None for part in parts):
        return None
    start = tuple(part.start or 0 for part in parts)
    step = tuple(part.step or 1 for part in parts)
    plain = all(isinstance(number, int) for number in start + step)
    return {'start': start, 'step': step} if plain and min(start) >= 0 and min(step) > 0 else None


def _constant_factor(node: fx.Node) -> float | None:
    """The number by which a call multiplies a tensor; None if it does not."""
    if node.kwargs or len(node.args) != 2 or len(node.all_input_nodes) != 1:
        return None
    tensor, number = sorted(node.args, key=lambda arg: not isinstance(arg, fx.Node))
    if _is_number(tensor) or isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if node.target in _MULS or node.target in ('mul', 'mul_'):
        return float(number)
    return None


def _are_tensors(args: tuple[Any, ...]) -> TypeGuard[tuple[fx.Node, fx.Node]]:
    return len(args) == 2 and all(isinstance(a, fx.Node) and not _is_number(a) for a in args)


def _size_of(size: Any) -> fx.Node | None:
    """The tensor ``t`` if ``size`` is ``t.shape[2:]`` in one of its spellings, else None."""

    def is_shape(value: Any) -> fx.Node | None:
        if not isinstance(value, fx.Node):
            return None
        by_attribute = value.target is getattr and value.args[1:] == ('shape',)
        by_method = value.op == 'call_method' and value.target == 'size' and len(value.args) == 1
        return tensor(value.args[0]) if by_attribute or by_method else None

    if not (isinstance(size, fx.Node) and size.target is operator.getitem):
        return None
    shape, index = size.args
    if index in (slice(2, None), slice(-2, None), slice(2, None, None), slice(2, 4)):
        return is_shape(shape)
    return None


def _read_upsample(x: fx.Node, size: Any, scale: Any, mode: str) -> Op:
    if mode != 'nearest':
        return _op('float', reason=f'{mode} interpolation has no int8 form')
    if size is None and isinstance(scale, (int, float, tuple, list)):
        pair = (scale, scale) if isinstance(scale, (int, float)) else tuple(scale)
        return _op('upsample', x, scale=tuple(float(value) for value in pair))
    like = _size_of(size)
    if like is None:
        return _op('float', reason="interpolation to a size that is not another tensor's")
    return _op('upsample', x, like, scale=None)


def _averages_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``mean`` runs over rows and columns and keeps both axes."""
    options = {**dict(zip(('dim', 'keepdim'), args, strict=False)), **kwargs}
    dims = options.get('dim')
    images = isinstance(dims, (tuple, list)) and sorted(dims) in ([2, 3], [-2, -1])
    return images and options.get('keepdim') is True and set(options) == {'dim', 'keepdim'}


def _named(
    names: str, args: tuple[Any, ...], kwargs: dict[str, Any], **defaults: Any
) -> dict[str, Any]:
    """Arguments of a call by name, those that it leaves out as in ``defaults``."""
    return {**defaults, **dict(zip(names.split(), args, strict=False)), **kwargs}


def _read_call_on(x: fx.Node, node: fx.Node) -> Op | None:
    """A call whose first argument is the tensor ``x``, if that is all it reads; else None."""
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    if (activation := activations.of_call(node)) is not None:
        return _op('activation', x, **activation)
    if target is F.adaptive_avg_pool2d:
        size = kwargs.get('output_size', args[1] if len(args) > 1 else None)
        if size in (1, (1, 1), [1, 1]):
            return _op('avg_pool', x)
    if target in (torch.mean, 'mean') and _averages_images(args[1:], kwargs):
        return _op('avg_pool', x)
    if target in (torch.flatten, 'flatten') and args[1:] == (1,) and not kwargs:
        return _op('flatten', x)
    if target is operator.getitem and (found := _read_slice(args[1])) is not None:
        return _op('slice', x, **found)
    return _op('identity', x) if target in ('contiguous', 'float') else None


def _read_call(node: fx.Node) -> Op:
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    first = args[0] if args else None
    if (target in _ADDS or target in ('add', 'add_')) and _are_tensors(args) and not kwargs:
        return _op('add', *args)
    if (target in _MULS or target in ('mul', 'mul_')) and _are_tensors(args) and not kwargs:
        return _op('mul', *args)
    if isinstance(first, fx.Node) and (found := _read_call_on(first, node)) is not None:
        return found
    if target in _CONCATS:
        dim = kwargs.get('dim', args[1] if len(args) > 1 else 0)
        if dim == 1 and isinstance(first, (tuple, list)):
            return _op('concat', *map(tensor, first))
    if target is F.interpolate:
        options = _named('input size scale_factor mode', args, kwargs, size=None, scale_factor=None,
                         mode='nearest')  # fmt: skip
        x = tensor(options['input'])
        return _read_upsample(x, options['size'], options['scale_factor'], options['mode'])
    if target is F.max_pool2d:
        names = 'input kernel_size stride padding dilation ceil_mode'
        options = _named(names, args, kwargs, stride=None, padding=0, dilation=1, ceil_mode=False)
        if not options.get('return_indices'):
            return _read_max_pool(tensor(options['input']), options)
    if target is F.avg_pool2d:
        names = 'input kernel_size stride padding ceil_mode count_include_pad'
        options = _named(names, args, kwargs, stride=None, padding=0, ceil_mode=False,
                         count_include_pad=True)  # fmt: skip
        if options.get('divisor_override') is None and len(args) <= len(names.split()):
            return _read_avg_pool(tensor(options['input']), options)
    factor = _constant_factor(node)
    if factor is not None:
        return _op('scale', *node.all_input_nodes, factor=factor)
    if target is getattr and args[1] in SHAPE_ATTRIBUTES or target in ('size', 'dim'):
        return _op('float', reason='')
    label = target if isinstance(target, str) else FUNCTION_NAMES.get(target, str(target))
    label = label.split('.')[-1]
    return _op('float', reason=MOVED if label in _MOVES else f'{label} has no int8 form')


def read(node: fx.Node, modules: dict[str, nn.Module]) -> Op:
    """``node`` as an :class:`Op`."""
    if node.meta.get(BOOKKEEPING) or REASON in node.meta:
        return _op('float', reason=node.meta.get(REASON, ''))
    if node.op == 'call_module':
        return _read_module(node, modules[name_of(node)])
    if node.op in ('call_function', 'call_method'):
        return _read_call(node)
    return _op('float', reason='')


def is_non_negative(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a float step's result cannot be negative, whatever its input."""
    target = type(modules[name_of(node)]) if node.op == 'call_module' else node.target
    return target in _NON_NEGATIVE
