"""A head's compiled steps for maps of one form."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..ops.cpu import heads as op
from .options import Options, head_fields
from .places import Sizes

_GRAIN = 32768
"""From so many items on PyTorch shares a sigmoid out between threads."""

_ALONE = 0, 1, 1, 1, 2
"""A run whose items go through the C library one by one."""


class Form(NamedTuple):
    """What the steps depend on beside a test config.

    Attributes:
        maps: Shape and strides of each map ``(N, C, H, W)``, kind by kind.
        threads: Those of PyTorch.
        coder: The coder's own numbers.
    """

    maps: tuple[tuple[tuple[torch.Size, tuple[int, ...]], ...], ...]
    threads: int
    coder: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """A head's steps, without an image.

    Attributes:
        heads: For each image of a batch, or one for all where scores are computed image by image.
        levels: Of each of them, which it points to.
        sizes: Of the maps.
        priors: Shape of each level's priors.
        addresses: Type of the array with addresses of all maps.
    """

    heads: tuple[op.Head, ...]
    levels: tuple[ctypes.Array, ...]
    sizes: Sizes
    priors: tuple[tuple[int, int], ...]
    addresses: type[ctypes.Array]


def roles(kind: int, maps: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Of all kinds of maps those with scores, boxes, and factors or None."""
    if kind == op.YOLOV3:
        return maps[0], maps[0], maps[0]
    return maps[0], maps[1], maps[2] if len(maps) > 2 else None


def _lanes() -> int:
    """Items of PyTorch's vector loop: two registers."""
    return 32 if torch.backends.cpu.get_cpu_capability() == 'AVX512' else 16


def _run(total: int, first: int, row: int, threads: int) -> op.Run:
    """A tensor whose sigmoid PyTorch takes, and a level's place in it."""
    share = total
    if total >= _GRAIN and threads > 1:
        share = math.ceil(total / min(threads, math.ceil(total / _GRAIN)))
    return op.Run(first, total, row, share, _lanes())


def _distances(shape: Sequence[int], strides: Sequence[int]) -> op.Strides | None:
    """A map's items from one place, and from one channel, to the next; None where places lie at
    different distances or something is between them. Strides of axes of size 1 may be any."""
    _, channels, height, width = shape
    if min(shape) < 1 or (height > 1 and width > 1 and strides[2] != width * strides[3]):
        return None
    places = height * width
    place = 0 if places == 1 else strides[3] if width > 1 else strides[2]
    channel = 0 if channels == 1 else strides[1]
    planes = place in (0, 1) and channel in (0, places)
    return op.Strides(place, channel) if planes or (channel, place) == (1, channels) else None


def _planes(form: Form) -> bool:
    """Whether classes lie in planes: MMDetection does not copy the scores of one anchor then, so
    that PyTorch goes through them in another order."""
    return any(shape[1] > 1 and strides[1] != 1 for shape, strides in form.maps[0])


def planned(head: Any, kind: int, options: Options, form: Form) -> Plan | None:
    """The steps for maps of a form; None where the head's own code must do them.

    Args:
        head: The head.
        kind: From :func:`mmclipq.pipeline.options.find_kind`.
        options: Of its test config.
        form: Of its maps.
    """
    if len(form.maps[0]) > op.LEVELS or not all(_distances(*x) for kind in form.maps for x in kind):
        return None
    grids = {tuple((shape[0], *shape[2:]) for shape, _ in maps) for maps in form.maps}
    if len(grids) != 1:  # steps read every kind of maps at the places of the first
        return None
    sizes: Sizes = tuple((shape[2], shape[3]) for shape, _ in form.maps[0])
    channels = [[shape[1] for shape, _ in kind] for kind in form.maps]
    single = any(c * h * w == 1 for c, (h, w) in zip(channels[0], sizes, strict=True))
    own = head_fields(head, kind, options, form.coder, channels, single)
    if own is None or own['classes'] < 1:
        return None
    if own['groups'] == 1 and kind != op.YOLOX and _planes(form):
        return None
    images = form.maps[0][0][0][0] if kind in (op.YOLOV3, op.YOLOX) else 1
    levels = tuple(
        _levels(head, kind, form, sizes, number, own['groups'], own['classes'])
        for number in range(images)
    )
    heads = tuple(op.Head(levels=given, count=len(sizes), **own) for given in levels)
    length = 2 if own['coder'] == op.DISTANCE else 4
    priors = tuple((height * width * own['groups'], length) for height, width in sizes)
    return Plan(heads, levels, sizes, priors, ctypes.c_void_p * (4 * len(sizes)))


def _levels(
    head: Any, kind: int, form: Form, sizes: Sizes, image: int, groups: int, classes: int
) -> ctypes.Array:
    """Levels of one image: YOLO's sigmoids are taken of all levels and images together, one anchor
    of YOLOv3 after the other, others' level by level."""
    levels = (op.Level * len(sizes))()
    counts = [height * width * groups for height, width in sizes]
    images = form.maps[0][0][0][0]
    total, first = images * sum(counts), image * sum(counts)
    given = zip(('scores', 'boxes', 'factors'), roles(kind, form.maps), strict=True)
    for role, maps in given:
        for level, x in zip(levels, maps or (), strict=False):
            setattr(level, role, _distances(*x))
    for number, (level, count) in enumerate(zip(levels, counts, strict=True)):
        level.places = count // groups
        if kind not in (op.YOLOV3, op.YOLOX):
            total, first = count, 0
        row = classes if kind == op.YOLOV3 else total * classes
        level.score_run = _run(total * classes, first * classes, row, form.threads)
        level.factor_run = _run(total, first, total, form.threads)
        if kind == op.YOLOV3:  # PyTorch reads them at distances, without its vector loop
            level.factor_run = op.Run(*_ALONE)
            level.stride = head.featmap_strides[number]
        first += count
    return levels
