"""Anchors, decoding of boxes, and suppression in standard ONNX operators.

Shapes use ``N`` images, ``P`` priors or boxes; all sizes may be dynamic. Domain: float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .builder import OnnxBuilder

FLOAT, INT64 = 1, 7


def image_size(g: OnnxBuilder, image: str) -> tuple[str, str]:
    """Height and width of ``image`` ``(N, C, H, W)`` as float32 scalars of shape ``(1,)``."""
    rows = g.op('Cast', g.op('Shape', image, start=2, end=3), to=FLOAT)
    columns = g.op('Cast', g.op('Shape', image, start=3, end=4), to=FLOAT)
    return rows, columns


def _ramp(g: OnnxBuilder, count: str, step: float) -> str:
    """``0, step, 2 * step, ...`` as float32; ``count`` has the shape ``(1,)``."""
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    numbers = g.op('Range', zero, g.op('Squeeze', count, g.integers(0)), one)
    return g.op('Mul', g.op('Cast', numbers, to=FLOAT), g.floats(step))


def grid_anchors(g: OnnxBuilder, level: str, base: Any, stride: Sequence[float]) -> str:
    """Anchors ``(H * W * A, 4)`` of a map ``(N, C, H, W)``, as MMDetection's AnchorGenerator.

    Args:
        g: Where to.
        level: Name of the map.
        base: Anchors at the origin ``(A, 4)``.
        stride: Pixels between columns and between rows.
    """
    x = _ramp(g, g.op('Shape', level, start=3, end=4), stride[0])
    y = _ramp(g, g.op('Shape', level, start=2, end=3), stride[1])
    of_x, of_y = g.constant([1, 0, 1, 0], np.float32), g.constant([0, 1, 0, 1], np.float32)
    x = g.op('Mul', g.op('Reshape', x, g.integers(1, -1, 1, 1)), of_x)
    y = g.op('Mul', g.op('Reshape', y, g.integers(-1, 1, 1, 1)), of_y)
    anchors = g.op('Add', g.constant(base, np.float32), g.op('Add', x, y))
    return g.op('Reshape', anchors, g.integers(-1, 4))


def rows_of(g: OnnxBuilder, level: str, columns: int) -> str:
    """A map ``(N, A * columns, H, W)`` as rows ``(N, H * W * A, columns)``."""
    return g.op('Reshape', g.op('Transpose', level, perm=[0, 2, 3, 1]), g.integers(0, -1, columns))


def quarters(g: OnnxBuilder, boxes: str) -> list[str]:
    """The four columns of the last axis, each with that axis of size 1."""
    return g.ops('Split', 4, boxes, g.integers(1, 1, 1, 1), axis=-1)


def decode_deltas(
    g: OnnxBuilder, priors: str, deltas: str, coder: Any, size: tuple[str, str]
) -> str:
    """Boxes of MMDetection's ``DeltaXYWHBBoxCoder``; ``priors`` and ``deltas`` are ``(..., 4)``."""
    stds, means = (g.constant(list(v), np.float32) for v in (coder.stds, coder.means))
    dx, dy, dw, dh = quarters(g, g.op('Add', g.op('Mul', deltas, stds), means))
    x1, y1, x2, y2 = quarters(g, priors)
    bound = abs(math.log(16 / 1000))
    half = g.floats(0.5)
    ends: list[tuple[str, str]] = []
    for low, high, shift, growth, limit in ((x1, x2, dx, dw, size[1]), (y1, y2, dy, dh, size[0])):
        side = g.op('Sub', high, low)
        moved = g.op('Mul', side, shift)
        centre = g.op('Add', g.op('Mul', g.op('Add', low, high), half), moved)
        growth = g.op('Clip', growth, g.floats(-bound), g.floats(bound))
        reach = g.op('Mul', g.op('Mul', side, g.op('Exp', growth)), half)
        pair = g.op('Sub', centre, reach), g.op('Add', centre, reach)
        if coder.clip_border:
            first, second = (g.op('Min', g.op('Max', v, g.floats(0.0)), limit) for v in pair)
            pair = first, second
        ends.append(pair)
    (x1, x2), (y1, y2) = ends
    return g.op('Concat', x1, y1, x2, y2, axis=-1)


def decode_yolo(g: OnnxBuilder, anchors: str, xy: str, wh: str, stride: float) -> str:
    """Boxes of MMDetection's ``YOLOBBoxCoder``; ``xy`` after the sigmoid, ``(N, P, 2)`` each."""
    low = g.op('Slice', anchors, g.integers(0), g.integers(2), g.integers(-1))
    high = g.op('Slice', anchors, g.integers(2), g.integers(4), g.integers(-1))
    half = g.floats(0.5)
    shift = g.op('Mul', g.op('Sub', xy, half), g.floats(stride))
    centre = g.op('Add', g.op('Mul', g.op('Add', low, high), half), shift)
    reach = g.op('Mul', g.op('Mul', g.op('Sub', high, low), half), g.op('Exp', wh))
    return g.op('Concat', g.op('Sub', centre, reach), g.op('Add', centre, reach), axis=-1)


def at_most(g: OnnxBuilder, tensor: str, axis: int, limit: int) -> str:
    """The smaller of ``limit`` and the size of ``axis``, int64 ``(1,)``; no limit below 1."""
    count = g.op('Shape', tensor, start=axis, end=axis + 1)
    return g.op('Min', count, g.integers(limit)) if limit > 0 else count


def above(g: OnnxBuilder, scores: str, threshold: float) -> str:
    """``scores``, those not above ``threshold`` as 0."""
    kept = g.op('Greater', scores, g.floats(threshold))
    return g.op('Where', kept, scores, g.floats(0.0))


def gather_rows(g: OnnxBuilder, rows: str, index: str, columns: int) -> str:
    """Rows ``(N, P, columns)`` at ``index`` ``(N, K)``."""
    wide = g.op('Expand', g.op('Unsqueeze', index, g.integers(2)), g.integers(1, 1, columns))
    return g.op('GatherElements', rows, wide, axis=1)


def best(g: OnnxBuilder, scores: str, count: int) -> tuple[str, str]:
    """The ``count`` highest scores of ``(N, P)``, or all, sorted, with their places."""
    values, index = g.ops('TopK', 2, scores, at_most(g, scores, 1, count), axis=1)
    return values, index


def large_enough(g: OnnxBuilder, boxes: str, scores: str, smallest: float) -> str:
    """``scores`` ``(N, P)``, those of boxes with a side of at most ``smallest`` as 0."""
    if smallest < 0:
        return scores
    x1, y1, x2, y2 = quarters(g, boxes)
    wide = g.op('Greater', g.op('Sub', x2, x1), g.floats(smallest))
    high = g.op('Greater', g.op('Sub', y2, y1), g.floats(smallest))
    kept = g.op('Squeeze', g.op('And', wide, high), g.integers(2))
    return g.op('Where', kept, scores, g.floats(0.0))


def suppress(
    g: OnnxBuilder, boxes: str, scores: str, labels: str, iou: float, count: int
) -> tuple[str, str, str]:
    """NMS within each label: the best ``count`` boxes of each image, sorted by score.

    Places beyond the last box have score 0, label -1 and the box 0, 0, 0, 0. If there are fewer
    candidates than ``count``, there are as many places as candidates.

    Args:
        g: Where to.
        boxes: ``(N, P, 4)``.
        scores: ``(N, P)``; 0 for what is no candidate.
        labels: int64 ``(N, P)``.
        iou: Boxes that overlap a better one more than this go.
        count: Boxes per image.

    Returns:
        Names of boxes ``(N, K, 4)``, scores ``(N, K)``, labels ``(N, K)`` int64.
    """
    if g.opset >= 18:
        largest = g.op('ReduceMax', boxes, g.integers(1, 2), keepdims=1)
    else:
        largest = g.op('ReduceMax', boxes, axes=[1, 2], keepdims=1)
    # Boxes of different labels are moved apart, as MMCV's batched_nms does.
    apart = g.op('Unsqueeze', g.op('Cast', labels, to=FLOAT), g.integers(2))
    apart = g.op('Mul', apart, g.op('Add', largest, g.floats(1.0)))
    chosen = g.op(
        'NonMaxSuppression',
        g.op('Add', boxes, apart),
        g.op('Unsqueeze', scores, g.integers(1)),
        g.integers(count),
        g.floats(iou),
        g.floats(0.0),
    )
    places = g.op('Gather', chosen, g.integers(0, 2), axis=1)
    found = g.op('GatherND', scores, places)
    none = g.op('Mul', scores, g.floats(0.0))
    kept = g.op('ScatterND', none, places, found)
    values, index = best(g, kept, count)
    real = g.op('Greater', values, g.floats(0.0))
    names = g.op('GatherElements', labels, index, axis=1)
    names = g.op('Where', real, names, g.constant(-1, np.int64))
    mask = g.op('Unsqueeze', g.op('Cast', real, to=FLOAT), g.integers(2))
    return g.op('Mul', gather_rows(g, boxes, index, 4), mask), values, names
