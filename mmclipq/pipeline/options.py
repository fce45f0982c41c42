"""Which heads compiled steps can make boxes of, and with which options."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.models.dense_heads import RPNHead, YOLOV3Head, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.coders import (
    DeltaXYWHBBoxCoder,
    DistancePointBBoxCoder,
    YOLOBBoxCoder,
)
from torch import nn

from ..ops.cpu import heads as op
from .settings import Settings, least_logit
from .suppression import nms

_KINDS: dict[tuple[Any, ...], int] = {
    (functions.predict_by_feat, single, functions._bbox_post_process): kind
    for functions, single, kind in (
        (BaseDenseHead, BaseDenseHead._predict_by_feat_single, op.THRESHOLDED),
        (RPNHead, RPNHead._predict_by_feat_single, op.PROPOSALS),
        (YOLOV3Head, BaseDenseHead._predict_by_feat_single, op.YOLOV3),
        (YOLOXHead, BaseDenseHead._predict_by_feat_single, op.YOLOX),
    )
}
"""By the functions that make boxes."""

_CODERS = {
    DeltaXYWHBBoxCoder: op.DELTA, DistancePointBBoxCoder: op.DISTANCE, YOLOBBoxCoder: op.CELL_DELTA
}  # fmt: skip

_LARGEST_DELTA = abs(math.log(16 / 1000))
"""Of a width's or height's logarithm, by default of ``delta2bbox``."""


def find_kind(head: nn.Module) -> int | None:
    """Number of the steps that make a stock head's boxes; None for another head or coder."""
    own: Any = type(head)
    names = 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'
    kind = _KINDS.get(tuple(getattr(own, name, None) for name in names))
    if kind == op.YOLOX:
        return kind if own._bbox_decode is YOLOXHead._bbox_decode else None
    coder = type(getattr(head, 'bbox_coder', None))
    fits = coder in _CODERS and (kind == op.YOLOV3) == (coder is YOLOBBoxCoder)
    return kind if fits else None


@dataclass(frozen=True)
class Options:
    """What a test config says, as the steps take it.

    Attributes:
        score: ``score_thr``.
        confidence: ``conf_thr`` of YOLOv3.
        most: ``nms_pre``.
        smallest: ``min_bbox_size``.
        kept: ``max_per_img``; 0 for all.
        overlap: ``nms.iou_threshold``.
        agnostic: ``nms.class_agnostic``.
    """

    score: float
    confidence: float
    most: int
    smallest: float
    kept: int
    overlap: float
    agnostic: bool


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)


def read_options(settings: Settings, kind: int) -> Options | None:
    """The options of a test config; None where it has unusual ones."""
    suppression = settings.get('nms')
    if not isinstance(suppression, Mapping) or suppression.get('type') is not nms:
        return None
    if not suppression.keys() <= {'type', 'iou_threshold', 'class_agnostic', 'max_num'}:
        return None
    found: dict[str, Any] = dict(
        score=settings.get('score_thr', 0), confidence=settings.get('conf_thr', -1),
        most=settings.get('nms_pre', -1), smallest=settings.get('min_bbox_size', -1),
        kept=settings.get('max_per_img'), overlap=suppression.get('iou_threshold'),
    )  # fmt: skip
    if kind == op.YOLOX:
        if 'score_thr' not in settings or 'max_num' in suppression:
            return None
        found |= dict(confidence=-1, most=-1, smallest=-1, kept=0)
    elif not isinstance(found['kept'], int) or found['kept'] < 1:
        return None
    if not _are_numbers(*found.values()):
        return None
    if kind in (op.THRESHOLDED, op.YOLOV3) and found['most'] < 1:
        return None  # MMDetection drops the last one then
    if suppression.get('max_num', found['kept']) != found['kept']:
        return None
    return Options(**found, agnostic=bool(suppression.get('class_agnostic', False)))


def coder_numbers(head: Any, kind: int) -> tuple[Any, ...]:
    """What a head's coder of boxes depends on."""
    if kind == op.YOLOX:
        return ()
    coder = head.bbox_coder
    if kind == op.YOLOV3:
        return (coder.use_box_type,)
    if type(coder) is DistancePointBBoxCoder:
        return coder.use_box_type, coder.clip_border is not False
    return (
        coder.use_box_type, bool(coder.clip_border), bool(coder.add_ctr_clamp),
        tuple(coder.means), tuple(coder.stds),
    )  # fmt: skip


def head_fields(
    head: Any,
    kind: int,
    options: Options,
    coder: Sequence[Any],
    channels: Sequence[Sequence[int]],
    single: bool,
) -> dict[str, Any] | None:
    """Fields of :class:`mmclipq.ops.cpu.heads.Head`; None for a head that is unusual.

    Args:
        head: The head.
        kind: From :func:`find_kind`.
        options: Of its test config.
        coder: From :func:`coder_numbers`.
        channels: Channels of each kind of maps, level by level.
        single: Whether a level has a single score.
    """
    least = least_logit(options.score)
    own: dict[str, Any] = dict(
        kind=kind, least=least, least_factor=-math.inf, score_threshold=options.score,
        factor_threshold=options.confidence, most=options.most, smallest=options.smallest,
        agnostic=options.agnostic, overlap=options.overlap, kept=options.kept,
        box_group=4, factor_group=1,
    )  # fmt: skip
    if kind == op.YOLOX:
        own |= dict(coder=op.CENTRE, groups=1, classes=head.cls_out_channels, least_factor=least)
        own |= dict(score_group=head.cls_out_channels, has_factors=True)
        return own if _each(channels, (head.cls_out_channels, 4, 1)) else None
    if coder[0]:  # boxes of a type of their own
        return None
    if kind == op.YOLOV3:
        groups, length = head.num_base_priors, head.num_attrib
        own |= dict(coder=op.CELL_DELTA, groups=groups, classes=length - 5, first_class=5)
        own |= dict.fromkeys(('score_group', 'box_group', 'factor_group'), length)
        own |= dict(has_factors=True, least_factor=least_logit(options.confidence))
        return own if _each(channels, (groups * length,)) else None
    length, softmax = head.cls_out_channels, not head.use_sigmoid_cls
    groups = channels[0][0] // length
    own |= dict(coder=_CODERS[type(head.bbox_coder)], clips=coder[1], softmax=softmax)
    own |= dict(groups=groups, classes=length - softmax, score_group=length)
    own |= dict(has_factors=len(channels) > 2)
    if kind == op.PROPOSALS:
        own |= dict(least=-math.inf)
        if softmax or length != 1 or single or own['has_factors']:
            return None
    if softmax and (own['has_factors'] or length < 2):
        return None
    if own['coder'] == op.DELTA:
        clamped, means, stds = coder[2:]
        if clamped or len(means) != 4 or len(stds) != 4:
            return None
        own |= dict(means=(ctypes.c_float * 4)(*means), stds=(ctypes.c_float * 4)(*stds))
        own |= dict(largest_delta=_LARGEST_DELTA)
    return own if _each(channels, (groups * length, groups * 4, groups)) else None


def _each(channels: Sequence[Sequence[int]], wanted: Sequence[int]) -> bool:
    """Whether all levels of each kind of maps have the channels that are wanted."""
    return len(channels) <= len(wanted) and all(
        set(found) == {count} for found, count in zip(channels, wanted, strict=False)
    )
