"""Steps that read float32 values, in standard ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graph import ir
from .builder import ExportError, OnnxBuilder


def padding(node: ir.Conv, kernel: Sequence[int]) -> dict[str, Any]:
    """Attributes of a convolution that pad as ``node`` does.

    Raises:
        ExportError: for padding that depends on the image under strides and dilation, naming the
            node.
    """
    if not node.covering:
        return {'pads': [*node.padding, *node.padding]}
    if node.dilation == (1, 1):
        return {'auto_pad': 'SAME_UPPER'}
    if node.stride != (1, 1):
        raise ExportError(
            f'{node.name}: found padding that depends on the image under strides {node.stride} and '
            f'dilation {node.dilation}, wanted either of them to be 1'
        )
    before, after = zip(*node.pads(kernel, kernel), strict=True)  # of any image
    return {'pads': [*before, *after]}


def average_pool(g: OnnxBuilder, node: ir.AvgPool, x: str, offset: int) -> str:
    """Averages of the windows of ``x`` ``(N, C, H, W)``, whose codes have ``offset``.

    Raises:
        ExportError: for windows that may start in padding that counts, naming the node.
    """
    if node.kernel is None:
        return g.op('GlobalAveragePool', x)
    top, left = node.padding
    counted = node.count_padding
    if (node.ceil_mode or offset) and node.count_padding and any(node.padding):
        # OpenVINO counts rows beyond the padding, too, and pads with codes of zero: so the padding
        # becomes part of the image.
        for kernel, stride, padding in zip(node.kernel, node.stride, node.padding, strict=True):
            if node.ceil_mode and padding and stride > kernel - padding:
                raise ExportError(
                    f'{node.name}: found windows that may start in the padding behind the image, '
                    'wanted a stride of at most the kernel less its padding'
                )
        x = g.op('Pad', x, g.integers(0, 0, top, left, 0, 0, top, left))
        top, left, counted = 0, 0, False
    return g.op(
        'AveragePool', x, kernel_shape=list(node.kernel), strides=list(node.stride),
        pads=[top, left, top, left], ceil_mode=int(node.ceil_mode), count_include_pad=int(counted),
    )  # fmt: skip


def group_norm(
    g: OnnxBuilder, x: str, groups: int, eps: float, weight: np.ndarray, bias: np.ndarray, rank: int
) -> str:
    """``x`` ``(N, C, ...)`` with ``groups`` runs of channels normalized, times ``weight``, plus
    ``bias``, both ``(C,)``.

    Args:
        rank: Number of axes of ``x``.
    """
    shape = g.op('Shape', x)
    grouped = g.op('Reshape', x, g.integers(0, groups, -1))
    ones, zeros = (g.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    normal = g.op('InstanceNormalization', grouped, ones, zeros, epsilon=eps)
    return scaled_channels(
        g, g.op('Reshape', normal, shape), weight, bias, (-1,) + (1,) * (rank - 2)
    )


def layer_norm(
    g: OnnxBuilder, x: str, eps: float, weight: np.ndarray, bias: np.ndarray, channels_last: bool
) -> str:
    """``x`` normalized over its last axis, or else over the channels of ``(N, C, H, W)``, times
    ``weight``, plus ``bias``, both ``(C,)``."""
    constants = (g.constant(value, np.float32) for value in (weight, bias))
    if channels_last:
        return g.op('LayerNormalization', x, *constants, axis=-1, epsilon=eps)
    pixels = g.op('Transpose', x, perm=[0, 2, 3, 1])
    normal = g.op('LayerNormalization', pixels, *constants, axis=-1, epsilon=eps)
    return g.op('Transpose', normal, perm=[0, 3, 1, 2])


def scaled_channels(
    g: OnnxBuilder, x: str, factor: np.ndarray, added: np.ndarray, shape: Sequence[int]
) -> str:
    """``x * factor + added``, both ``(C,)`` and shaped to broadcast as ``shape`` says."""
    x = g.op('Mul', x, g.constant(factor.reshape(shape), np.float32))
    return g.op('Add', x, g.constant(added.reshape(shape), np.float32))


def roi_align(g: OnnxBuilder, node: ir.RoIAlign, levels: Sequence[str], rois: str) -> str:
    """Float32 averages of ``node``: the regions of each level apart, then in their order again.

    Args:
        g: Where to.
        node: Geometry.
        levels: Names of the float32 levels.
        rois: Name of the regions ``(K, 5)``.
    """
    image, x1, y1, x2, y2 = g.ops('Split', 5, rois, g.integers(1, 1, 1, 1, 1), axis=1)
    area = g.op('Mul', g.op('Sub', x2, x1), g.op('Sub', y2, y1))
    size = g.op('Div', g.op('Sqrt', g.op('Max', area, g.floats(0.0))), g.floats(node.finest_scale))
    size = g.op('Squeeze', g.op('Add', size, g.floats(1e-6)), g.integers(1))
    boxes = g.op('Concat', x1, y1, x2, y2, axis=1)
    batch = g.op('Squeeze', g.op('Cast', image, to=7), g.integers(1))
    parts, orders = [], []
    last = len(levels) - 1
    for index, (level, scale) in enumerate(zip(levels, node.scales, strict=True)):
        # The first level also takes sizes that are not numbers, so that no region is lost.
        chosen = None
        if index > 0:
            chosen = g.op('GreaterOrEqual', size, g.floats(2.0**index))
        if index < last:
            below = g.op('Not', g.op('GreaterOrEqual', size, g.floats(2.0 ** (index + 1))))
            chosen = below if chosen is None else g.op('And', chosen, below)
        which_boxes, which_batch = boxes, batch
        if chosen is not None:
            order = g.op('Squeeze', g.op('NonZero', chosen), g.integers(0))
            which_boxes = g.op('Gather', boxes, order, axis=0)
            which_batch = g.op('Gather', batch, order, axis=0)
            orders.append(order)
        mode = 'half_pixel' if node.aligned else 'output_half_pixel'
        parts.append(
            g.op(
                'RoiAlign', level, which_boxes, which_batch, mode='avg',
                coordinate_transformation_mode=mode, output_height=node.output_size[0],
                output_width=node.output_size[1], sampling_ratio=node.sampling_ratio,
                spatial_scale=float(scale),
            )
        )  # fmt: skip
    if not orders:
        return parts[0]
    order = g.op('Concat', *orders, axis=0)
    together = g.op('Concat', *parts, axis=0)
    count = g.op('Squeeze', g.op('Shape', order), g.integers(0))
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    places = g.op('Range', zero, count, one)
    inverse = g.op('ScatterElements', places, order, places, axis=0)
    return g.op('Gather', together, inverse, axis=0)
