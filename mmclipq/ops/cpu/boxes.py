"""Selection of places and suppression of boxes in C++ (``csrc/cpu/select.cpp``, ``nms.cpp``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ..steps import FLOAT, INT, LONG, fields
from .library import library


class _Select(ctypes.Structure):
    """``ClipqSelect`` of ``csrc/cpu/select.cpp``."""

    _fields_ = [
        *fields(scores=ctypes.c_void_p, places__place_stride__channel_stride=LONG),
        *fields(groups__group_stride__channels=LONG, threshold=FLOAT, background=INT, most=LONG),
        *fields(gate=ctypes.c_void_p, gate_place_stride__gate_group_stride=LONG),
        *fields(gate_threshold=FLOAT),
    ]


@dataclass(frozen=True)
class Scores:
    """Where the logits of a map lie that decide about its places.

    Attributes:
        groups: Groups of channels, one for each anchor of a place.
        group_stride: Channels from one group's first to the next one's.
        first: The first score's channel in a group.
        channels: Scores of a group.
        background: Whether the channel behind them is the background's logit, which is taken off.
    """

    groups: int
    group_stride: int
    first: int
    channels: int
    background: bool = False

    def merged(self) -> Scores:
        """The same scores with all groups as one, where nothing is between them."""
        if self.background or self.group_stride != self.channels:
            return self
        return Scores(1, self.groups * self.channels, self.first, self.groups * self.channels)


def _regular(feature_map: Tensor) -> tuple[Tensor, int, int]:
    """The map, or a copy whose places lie at equal distances, and the items from one place and from
    one channel to the next."""
    _, height, width = feature_map.shape
    if height > 1 and feature_map.stride(1) != width * feature_map.stride(2):
        feature_map = feature_map.contiguous()
    return feature_map, feature_map.stride(2), feature_map.stride(0)


def select_places(
    feature_map: Tensor,
    scores: Scores,
    threshold: float,
    most: int = 0,
    gate: tuple[Tensor, int, int, float] | None = None,
) -> Tensor:
    """Numbers of the places that have a score at or above a threshold.

    Args:
        feature_map: Float32 ``(C, H, W)`` on the CPU, in any memory order; a copy is made where
            its places do not lie at equal distances.
        scores: Its channels that count.
        threshold: Least logit. A NaN counts as above.
        most: If positive, a score must also be among so many largest ones of the map, or so close
            to the last of them that its sigmoid in float32 may equal it (a relative 1e-6).
        gate: Another map, its first channel, the channels from one group to the next, and the least
            logit there: a group counts only if its gate reaches it.

    Returns:
        Int64 ``(n,)``, ascending: row times W plus column. Up to 94 places more are among them, so
        that n leaves the same remainder by 32 as all places do, and the last ones stay the last.
    """
    scores = scores if gate else scores.merged()
    feature_map, place_stride, channel_stride = _regular(feature_map)
    places = feature_map.shape[1] * feature_map.shape[2]
    spec = _Select(
        feature_map.data_ptr() + 4 * scores.first * channel_stride,
        places, place_stride, channel_stride,
        scores.groups, scores.group_stride, scores.channels,
        threshold, scores.background, most,
    )  # fmt: skip
    if gate is not None:
        other, first, distance, least = gate
        other, spec.gate_place_stride, channel_stride = _regular(other)
        spec.gate = other.data_ptr() + 4 * first * channel_stride
        spec.gate_group_stride = distance * channel_stride
        spec.gate_threshold = least
    numbers = torch.empty(places, dtype=torch.int64)
    count = library().clipq_select(ctypes.byref(spec), numbers.data_ptr())
    if count < 0:
        raise MemoryError('no memory to select boxes')
    return numbers[:count]


def suppress_sorted(
    boxes: Tensor, order: Tensor, threshold: float, offset: int, most: int
) -> Tensor:
    """Greedy non-maximum suppression, bit for bit that of ``mmcv.ops.nms`` on a CPU.

    Args:
        boxes: Float32 ``(n, 4)``, corners, contiguous, in pixels.
        order: Int64 ``(n,)``, numbers of the boxes, the largest score first.
        threshold: Largest intersection over union, in float32, with a box that stays.
        offset: What is added to every width and height, 0 or 1.
        most: So many are enough.

    Returns:
        Int64 numbers of the boxes that stay, in ``order``.
    """
    kept = torch.empty(min(most, len(order)), dtype=torch.int64)
    found = library().clipq_nms(
        boxes.data_ptr(), order.data_ptr(), len(order), threshold, offset, len(kept),
        kept.data_ptr(),
    )  # fmt: skip
    if found < 0:
        raise MemoryError('no memory to suppress boxes')
    return kept[:found]
