"""Shapes of tensors: the one rule for each kind of node, whoever asks.

The loader follows them through whole graphs before anything runs, the planners of compiled backends
through parts of one. All shapes are those seen from outside, ``(N, C, H, W)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import first_line
from .nodes import (
    Activate,
    Add,
    AvgPool,
    Concat,
    Dequantize,
    Flatten,
    MaxPool,
    Mul,
    Quantize,
    Requantize,
    RoIAlign,
    Slice,
    Upsample,
)
from .norms import Affine, GroupNorm, LayerNorm
from .products import Conv, ConvTranspose, Linear, Product
from .types import GraphError, Node

Shape = tuple[int, ...]


def _wrong(node: Node, found: object, wanted: str) -> GraphError:
    return GraphError(f'{node.name}: found an input of {found}, wanted {wanted}')


def _image(node: Node, shape: Sequence[int]) -> None:
    if len(shape) != 4:
        raise _wrong(node, tuple(shape), 'images (N, C, H, W)')


def pooled_sides(node: AvgPool, sides: Sequence[int]) -> list[int]:
    """Rows and columns of the pooled image of an image with ``sides``; less than one if none."""
    if node.kernel is None:
        return [1, 1]
    counts = []
    for size, kernel, stride, padding in zip(
        sides, node.kernel, node.stride, node.padding, strict=True
    ):
        reach = size + 2 * padding - kernel
        count = (-(-reach // stride) if node.ceil_mode else reach // stride) + 1
        # A last window that would start in the far padding is left out, as in PyTorch.
        if node.ceil_mode and (count - 1) * stride >= size + padding:
            count -= 1
        counts.append(count)
    return counts


def product_shape(node: Product, weight: Sequence[int], x: Sequence[int]) -> Shape:
    """Shape of a layer's own result.

    Args:
        node: The layer.
        weight: Shape of its weight codes.
        x: Shape of its input.

    Raises:
        GraphError: if the input has other channels than the weight, or is smaller than the kernel.
    """
    if isinstance(node, Linear):
        if not x or x[-1] != weight[1]:
            raise _wrong(node, f'shape {tuple(x)}', f'{weight[1]} channels as its weight has')
        return (*x[:-1], weight[0])
    if not isinstance(node, (Conv, ConvTranspose)):
        raise GraphError(f'{node.name}: found {type(node).__name__}, wanted a layer')
    _image(node, x)
    if x[1] != weight[1] * node.groups:
        raise _wrong(
            node, f'{x[1]} channels', f'{weight[1] * node.groups} as its weight and groups have'
        )
    kernel = weight[2:]
    if isinstance(node, ConvTranspose):
        sides = [
            (n - 1) * s - 2 * p + d * (k - 1) + more + 1
            for n, k, s, p, d, more in zip(
                x[2:], kernel, node.stride, node.padding, node.dilation, node.output_padding,
                strict=True,
            )
        ]  # fmt: skip
    else:
        pads = node.pads(x[2:], kernel)
        sides = [
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(x[2:], kernel, node.stride, pads, node.dilation, strict=True)
        ]
    if min(sides) < 1:
        raise _wrong(node, f'{x[2]}x{x[3]}', 'one that its kernel fits into; use larger images')
    return (x[0], weight[0], *sides)


def _product(node: Product, shapes: Mapping[str, Shape], weight: Shape) -> Shape:
    own = product_shape(node, weight, shapes[node.x])
    if node.residual is None:
        return own
    return _broadcast(node, own, shapes[node.residual])


def _broadcast(node: Node, *shapes: Shape) -> Shape:
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        raise _wrong(node, ' and '.join(map(str, shapes)), 'shapes that broadcast') from None


def _channels(node: Affine | GroupNorm | LayerNorm, shape: Shape, channels: int) -> Shape:
    second = len(shape) == 4 or isinstance(node, GroupNorm)
    axis = 1 if second else -1
    if len(shape) < (2 if second else 1) or shape[axis] != channels:
        raise _wrong(node, f'shape {shape}', f'{channels} channels as its constants have')
    return shape


def _concat(node: Concat, shapes: Mapping[str, Shape]) -> Shape:
    parts = [shapes[name] for name in node.tensors]
    if any(len(p) < 2 or (p[0], *p[2:]) != (parts[0][0], *parts[0][2:]) for p in parts):
        raise _wrong(node, f'shapes {parts[:8]}', 'shapes that differ in channels alone')
    return (parts[0][0], sum(part[1] for part in parts), *parts[0][2:])


def _max_pool(node: MaxPool, shape: Shape) -> Shape:
    _image(node, shape)
    try:
        # PyTorch's own rules give the size; a tensor without memory makes that free.
        pooled = F.max_pool2d(
            torch.empty(1, 1, *shape[2:], device='meta'), node.kernel, node.stride, node.padding,
            node.dilation, node.ceil_mode,
        )  # fmt: skip
    except RuntimeError as error:
        raise _wrong(
            node, f'{shape[2]}x{shape[3]}', f'one to pool ({first_line(error, None)})'
        ) from None
    return (*shape[:2], *pooled.shape[2:])


def _avg_pool(node: AvgPool, shape: Shape) -> Shape:
    _image(node, shape)
    sides = pooled_sides(node, shape[2:])
    if min(sides) < 1 or min(shape[2:]) < 1:
        raise _wrong(node, f'{shape[2]}x{shape[3]}', 'one that its kernel fits into')
    return (*shape[:2], *sides)


def _upsample(node: Upsample, shapes: Mapping[str, Shape]) -> Shape:
    shape = shapes[node.x]
    _image(node, shape)
    if node.like is not None:
        _image(node, shapes[node.like])
        sides = list(shapes[node.like][2:])
    elif node.scale is not None:
        sides = [math.floor(n * scale) for n, scale in zip(shape[2:], node.scale, strict=True)]
    else:
        raise _wrong(node, 'no size', 'a scale, or a tensor of that size')
    if min(sides) < 1 or min(shape[2:]) < 1:
        raise _wrong(node, f'{shape[2]}x{shape[3]}', 'one with pixels after scaling')
    return (*shape[:2], *sides)


def _slice(node: Slice, shape: Shape) -> Shape:
    _image(node, shape)
    sides = [
        -(-(size - start) // step)
        for size, start, step in zip(shape[2:], node.start, node.step, strict=True)
    ]
    if min(sides) < 1:
        raise _wrong(node, f'{shape[2]}x{shape[3]}', 'one with pixels where it starts')
    return (*shape[:2], *sides)


def _flatten(node: Flatten, shape: Shape) -> Shape:
    if len(shape) < 2:
        raise _wrong(node, f'shape {shape}', 'at least two axes')
    return (shape[0], math.prod(shape[1:]))


def _roi_align(node: RoIAlign, shapes: Mapping[str, Shape]) -> Shape:
    rois, levels = shapes[node.rois], [shapes[name] for name in node.levels]
    if len(rois) != 2 or rois[1] != 5:
        raise _wrong(node, f'regions {rois}', 'regions (K, 5)')
    for level in levels:
        _image(node, level)
        if level[:2] != levels[0][:2] or min(level[2:]) < 1:
            raise _wrong(node, f'levels {levels[:8]}', 'levels of one batch and channels')
    return (rois[0], levels[0][1], *node.output_size)


_SAME = (Quantize, Dequantize, Requantize, Activate)
_OF_IMAGE: dict[type[Node], Callable[[Any, Shape], Shape]] = {
    MaxPool: _max_pool,
    AvgPool: _avg_pool,
    Slice: _slice,
    Flatten: _flatten,
}


def result_shape(node: Node, shapes: Mapping[str, Shape], constants: Mapping[str, Tensor]) -> Shape:
    """Shape of what ``node`` defines; neither an input nor a float step.

    Args:
        node: The node.
        shapes: Of the tensors that it reads.
        constants: Those of its graph.

    Raises:
        GraphError: if the node cannot read tensors of these shapes.
    """
    for name in node.inputs:
        if not shapes[name]:
            raise GraphError(f'{node.name}: found {name!r} without axes, wanted a tensor with some')
    if isinstance(node, _SAME):
        return shapes[node.x]
    if isinstance(node, Product):
        return _product(node, shapes, tuple(constants[node.weight].shape))
    if isinstance(node, (Affine, GroupNorm, LayerNorm)):
        return _channels(node, shapes[node.x], len(constants[node.bias]))
    if isinstance(node, (Add, Mul)):
        return _broadcast(node, shapes[node.x], shapes[node.other])
    if isinstance(node, Concat):
        return _concat(node, shapes)
    if isinstance(node, Upsample):
        return _upsample(node, shapes)
    if isinstance(node, RoIAlign):
        return _roi_align(node, shapes)
    return _OF_IMAGE[type(node)](node, shapes[node.inputs[0]])


def steps_of(node: Node, shapes: Mapping[str, Shape], constants: Mapping[str, Tensor]) -> float:
    """Multiplications, or other steps per value, that ``node`` takes at these shapes.

    ``shapes`` holds that of its result, too. An integer step on a processor costs about as much
    whatever it is; the number bounds the time, it does not predict it.
    """
    values = float(math.prod(shapes[node.name]))
    if isinstance(node, Product):
        weight = constants[node.weight].shape
        if isinstance(node, ConvTranspose):
            values = float(math.prod(shapes[node.x])) / max(weight[1] * node.groups, 1) * weight[0]
        return values * math.prod(weight[1:])
    if isinstance(node, (MaxPool, AvgPool)):
        window = node.kernel or shapes[node.x][2:]
        return values * math.prod(window)
    if isinstance(node, RoIAlign):
        # As many samples as the largest bin has pixels, where the node does not say.
        samples = 1.0
        for axis in (0, 1):
            side = shapes[node.levels[0]][2 + axis] / node.output_size[axis]
            samples *= node.sampling_ratio or max(1.0, math.ceil(side))
        return values * samples
    return values
