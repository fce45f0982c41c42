"""Reads torch.fx nodes as the few operations that the integer graph knows."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import fx, nn
from torch.nn import functional as F

from ..graph.islands import FUNCTION_NAMES, SHAPE_ATTRIBUTES
from ..layers import ClipConv, ClipLinear

_ADDS = {operator.add, operator.iadd, torch.add}
_CONCATS = {torch.cat, torch.concat}
_NON_NEGATIVE = {
    torch.sigmoid, F.sigmoid, torch.softmax, F.softmax, torch.exp, torch.relu, F.relu, F.relu6,
    F.hardsigmoid, torch.abs, nn.Sigmoid, nn.Softmax, nn.ReLU, nn.ReLU6, nn.Hardsigmoid, 'sigmoid',
    'sigmoid_', 'softmax', 'exp', 'relu', 'relu_', 'abs',
}  # fmt: skip


@dataclass(frozen=True)
class Op:
    """One fx node in the graph's terms.

    Attributes:
        kind: ``conv``, ``linear``, ``norm``, ``activation``, ``add``, ``concat``, ``max_pool``,
            ``upsample``, ``flatten``, ``roi_align``, ``identity`` or ``float``.
        operands: The fx nodes read as codes, then those that an upsampling or RoIAlign reads beside
            them.
        module: The layer, for ``conv``, ``linear`` and ``norm``.
        options: Arguments for the graph's node, or ``reason`` for ``float``.
    """

    kind: str
    operands: tuple[fx.Node, ...] = ()
    module: nn.Module | None = None
    options: tuple[tuple[str, Any], ...] = ()


def _op(kind: str, *operands: fx.Node, module: nn.Module | None = None, **options: Any) -> Op:
    return Op(kind, operands, module, tuple(options.items()))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


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
        padding = tuple(layer.padding)
    return padding if layer.padding_mode == 'zeros' or padding == (0, 0) else None


def _read_module(node: fx.Node, module: nn.Module) -> Op:
    x = node.args[0] if node.args else None
    name = type(module).__name__
    if isinstance(module, ClipConv):
        if same_padding(module) is None:
            return _op('float', reason=f'{module.padding_mode} padding of uneven or copied rows')
        return _op('conv', x, module=module)
    if isinstance(module, ClipLinear):
        return _op('linear', x, module=module)
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return _op('float', reason=f'{name} is skipped or computes more than a plain layer')
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and module.track_running_stats:
        return _op('norm', x, module=module)
    if isinstance(module, nn.LeakyReLU):
        return _op('activation', x, activation='leaky_relu', slope=module.negative_slope)
    if isinstance(module, nn.ReLU6):
        return _op('activation', x, activation='relu6')
    if isinstance(module, nn.ReLU):
        return _op('activation', x, activation='relu')
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d)):
        return _op('identity', x)
    if isinstance(module, nn.MaxPool2d) and not module.return_indices:
        return _read_max_pool(x, vars(module))
    if isinstance(module, nn.Upsample):
        return _read_upsample(x, module.size, module.scale_factor, module.mode)
    if type(module) is SingleRoIExtractor and len(node.args) == 2 and not node.kwargs:
        return _read_roi_align(module, *node.args)
    return _op('float', reason=f'{name} has no int8 form')


def _read_roi_align(extractor: SingleRoIExtractor, levels: Any, rois: fx.Node) -> Op:
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
        *levels,
        rois,
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


def _size_of(size: Any) -> fx.Node | None:
    """The tensor ``t`` if ``size`` is ``t.shape[2:]`` in one of its spellings, else None."""

    def is_shape(value: Any) -> fx.Node | None:
        if not isinstance(value, fx.Node):
            return None
        by_attribute = value.target is getattr and value.args[1:] == ('shape',)
        by_method = value.op == 'call_method' and value.target == 'size' and len(value.args) == 1
        return value.args[0] if by_attribute or by_method else None

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


def _read_call(node: fx.Node) -> Op:
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    x = args[0] if args else None
    if target in _ADDS or target in ('add', 'add_'):
        tensors = all(isinstance(arg, fx.Node) for arg in args)
        if len(args) == 2 and tensors and not kwargs:
            return _op('add', *args)
    if target in (F.relu, torch.relu, 'relu', 'relu_'):
        return _op('activation', x, activation='relu')
    if target is F.relu6:
        return _op('activation', x, activation='relu6')
    if target is F.leaky_relu:
        slope = kwargs.get('negative_slope', args[1] if len(args) > 1 else 0.01)
        return _op('activation', x, activation='leaky_relu', slope=slope)
    if target in _CONCATS:
        dim = kwargs.get('dim', args[1] if len(args) > 1 else 0)
        if dim == 1 and isinstance(x, (tuple, list)):
            return _op('concat', *x)
    if target is F.interpolate:
        names = ('input', 'size', 'scale_factor', 'mode')
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        return _read_upsample(
            options['input'],
            options.get('size'),
            options.get('scale_factor'),
            options.get('mode', 'nearest'),
        )
    if target is F.max_pool2d:
        names = ('input', 'kernel_size', 'stride', 'padding', 'dilation', 'ceil_mode')
        defaults = {'stride': None, 'padding': 0, 'dilation': 1, 'ceil_mode': False}
        options = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        if not options.get('return_indices'):
            return _read_max_pool(options['input'], options)
    if target in (torch.flatten, 'flatten') and args[1:] == (1,) and not kwargs:
        return _op('flatten', x)
    if target == 'contiguous':
        return _op('identity', x)
    if target is getattr and args[1] in SHAPE_ATTRIBUTES or target in ('size', 'dim'):
        return _op('float', reason='')
    label = target if isinstance(target, str) else FUNCTION_NAMES.get(target, str(target))
    return _op('float', reason=f'{label.split(".")[-1]} has no int8 form')


def read(node: fx.Node, modules: dict[str, nn.Module]) -> Op:
    """``node`` as an :class:`Op`."""
    if node.op == 'call_module':
        return _read_module(node, modules[node.target])
    if node.op in ('call_function', 'call_method'):
        return _read_call(node)
    return _op('float', reason='')


def is_non_negative(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a float step's result cannot be negative, whatever its input."""
    target = type(modules[node.target]) if node.op == 'call_module' else node.target
    return target in _NON_NEGATIVE
