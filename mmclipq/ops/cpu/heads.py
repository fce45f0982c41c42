"""From a dense head's maps to boxes in C++ (``csrc/cpu/candidates.cpp``, ``assemble.cpp``)."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor

from ..steps import FLOAT, INT, LONG, fields
from .library import library

CAPACITY = 1 << 18
"""Candidates of one image, and values of theirs that a softmax is taken of."""

_PIECE = 1 << 14
"""Values that PyTorch computes in one go, never split between threads."""

THRESHOLDED, PROPOSALS, YOLOV3, YOLOX = range(4)
DELTA, DISTANCE, CELL_DELTA, CENTRE = range(4)
KEPT, MULTIPLIED, DIVIDED = range(3)
_LEVELS_TIE, _BOXES_TIE = -3, -4


class Run(ctypes.Structure):
    """``ClipqRun`` of ``csrc/cpu/heads.h``."""

    _fields_ = fields(first__total__row__share__lanes=LONG)


class Strides(ctypes.Structure):
    """``ClipqStrides``."""

    _fields_ = fields(place__channel=LONG)


class Level(ctypes.Structure):
    """``ClipqHeadLevel``."""

    _fields_ = [
        *fields(places=LONG, scores__boxes__factors=Strides),
        *fields(score_run__factor_run=Run, stride=FLOAT),
    ]


class Head(ctypes.Structure):
    """``ClipqHead``."""

    _fields_ = [
        *fields(levels=ctypes.POINTER(Level), count=LONG, kind__coder__softmax__has_factors=INT),
        *fields(groups__score_group__first_class__classes__box_group__factor_group=LONG),
        *fields(least__least_factor__score_threshold__factor_threshold=FLOAT, most=LONG),
        *fields(means__stds=FLOAT * 4, largest_delta=FLOAT, clips=INT, smallest=FLOAT),
        *fields(agnostic=INT, overlap=FLOAT, kept=LONG),
    ]


class Image(ctypes.Structure):
    """``ClipqImage``."""

    _fields_ = [
        *fields(
            maps=ctypes.c_void_p, height__width__scale_x__scale_y=FLOAT, scaling__everything=INT
        ),
        *fields(capacity=LONG, index__values__exponents__counts=ctypes.c_void_p, padded=LONG),
        *fields(sorting__orders__order=ctypes.c_void_p, has_orders__has_order=INT),
        *fields(sizes_total=LONG, out_boxes__out_scores__out_labels=ctypes.c_void_p),
    ]


class Workspace(threading.local):
    """Memory of each thread for one image; what is not touched takes none."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            floats = dict(values=2 * CAPACITY + 32, exponents=2 * CAPACITY, sorting=CAPACITY)
            floats |= dict(out_boxes=4 * CAPACITY, out_scores=CAPACITY)
            numbers = dict.fromkeys(('index', 'orders', 'order', 'out_labels'), CAPACITY)
            numbers['counts'] = 64
            self.tensors = {name: torch.empty(size) for name, size in floats.items()}
            self.tensors |= {
                name: torch.empty(size, dtype=torch.int64) for name, size in numbers.items()
            }
        self.image = Image(capacity=CAPACITY)
        for name, tensor in self.tensors.items():
            setattr(self.image, name, tensor.data_ptr())


_WORKSPACE = Workspace()
LEVELS = 32
"""Most levels of a head."""


def _collect(head: Head, everything: bool) -> int:
    """Candidates of the workspace's image, with what PyTorch computes of them; their number, or a
    negative one if they do not fit."""
    image, tensors = _WORKSPACE.image, _WORKSPACE.tensors
    image.has_orders, image.has_order, image.everything = 0, 0, everything
    count = library().clipq_candidates(ctypes.byref(head), ctypes.byref(image))
    if count <= 0:
        return count
    if head.softmax:
        values = tensors['values'][: count * (head.classes + 1)].view(count, -1)
        values.copy_(values.softmax(-1))
    for start in range(0, image.padded, _PIECE):
        tensors['values'][start : min(start + _PIECE, image.padded)].sigmoid_()
    if head.coder != DISTANCE:
        tensors['exponents'][: 2 * count].exp_()
    return count


def _sort_parts(name: str, sizes: list[int]) -> None:
    """Let PyTorch choose between equal scores: numbers by descending score, part by part."""
    tensors, start = _WORKSPACE.tensors, 0
    for size in sizes:
        part = slice(start, start + size)
        tensors[name][part] = tensors['sorting'][part].sort(descending=True)[1]
        start += size


def find_boxes(
    head: Head,
    maps: ctypes.Array,
    limits: tuple[float, float],
    scale: tuple[float, float],
    scaling: int,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Boxes of one image that stay after suppression.

    Sigmoid, softmax and exponential of what can count are PyTorch's own functions, all else is
    float32 arithmetic in MMDetection's order of operations. Where scores are equal, PyTorch sorts,
    the same scores that it would sort otherwise if they fit the workspace.

    Args:
        head: The head.
        maps: Addresses of each level's scores, boxes, factors (0 for none) and priors.
        limits: Height and width of the image.
        scale: Factors of x and y.
        scaling: :data:`KEPT`, :data:`MULTIPLIED` by the factors or :data:`DIVIDED` by them.

    Returns:
        Boxes ``(n, 4)``, scores ``(n,)`` and labels int64 ``(n,)``; None where something is not
        finite or there are too many boxes.
    """
    image, tensors = _WORKSPACE.image, _WORKSPACE.tensors
    image.maps = ctypes.addressof(maps)
    image.height, image.width = limits
    image.scale_x, image.scale_y = scale
    image.scaling = scaling
    if _collect(head, False) < 0:
        return None
    references = ctypes.byref(head), ctypes.byref(image)
    assemble = library().clipq_assemble
    found = assemble(*references)
    if found == _LEVELS_TIE:
        cut = head.kind in (THRESHOLDED, PROPOSALS) and not head.softmax
        if cut and (_collect(head, True) < 0 or assemble(*references) != _LEVELS_TIE):
            _collect(head, False)
            assemble(*references)
        first = head.count
        _sort_parts('orders', tensors['counts'][first : first + image.sizes_total].tolist())
        image.has_orders = 1
        found = assemble(*references)
    if found == _BOXES_TIE:
        _sort_parts('order', [image.sizes_total])
        image.has_order = 1
        found = assemble(*references)
    if found < 0:
        return None
    boxes = tensors['out_boxes'][: 4 * found].clone().view(-1, 4)
    return boxes, tensors['out_scores'][:found].clone(), tensors['out_labels'][:found].clone()
