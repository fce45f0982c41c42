"""Non-maximum suppression with the results of ``mmcv.ops.nms``, many times faster on a CPU."""

from __future__ import annotations

import mmcv.ops
import torch
from torch import Tensor

from ..ops.cpu.boxes import suppress_sorted


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    """As ``mmcv.ops.nms``: the same boxes in the same order, ties included.

    It ends where ``max_num`` boxes are found. Other tensors than float32 ones on the CPU, and
    ``score_threshold``, are left to mmcv.

    Args:
        boxes: ``(n, 4)``, corners in pixels.
        scores: ``(n,)``.
        iou_threshold: Largest overlap, compared in float32, with a box of a higher score that
            stays.
        offset: What is added to widths and heights, 0 or 1.
        score_threshold: Only boxes above it count, where it is positive.
        max_num: At most so many boxes stay; all by default.

    Returns:
        Boxes with scores ``(k, 5)``, and their numbers, int64 ``(k,)``.
    """
    plain = all(x.device.type == 'cpu' and x.dtype == torch.float32 for x in (boxes, scores))
    if not plain or score_threshold > 0 or offset not in (0, 1) or boxes.shape[1:] != (4,):
        return mmcv.ops.nms(boxes, scores, iou_threshold, offset, score_threshold, max_num)
    order = scores.sort(descending=True)[1]  # as mmcv does: it decides about ties
    most = max_num if max_num > 0 else len(order)
    kept = suppress_sorted(boxes.contiguous(), order, iou_threshold, offset, most)
    return torch.cat((boxes[kept], scores[kept, None]), dim=1), kept
