"""Which places of its maps each kind of dense head needs for its boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mmdet.models.dense_heads import GFLHead, RPNHead, YOLOV3Head, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ..ops.cpu.boxes import Scores, select_places
from .places import Places
from .settings import Settings, least_logit


class DenseHead(Protocol):
    """What rules read of a head; each head has what its own rule reads.

    Attributes:
        cls_out_channels: Scores of an anchor, the background's included.
        use_sigmoid_cls: Whether classes have sigmoids, and not a softmax with the background.
        num_base_priors: Anchors of a place.
        num_attrib: Channels of an anchor of YOLOv3.
    """

    cls_out_channels: int
    use_sigmoid_cls: bool
    num_base_priors: int
    num_attrib: int


Rule = Callable[[DenseHead, Sequence[Sequence[Tensor]], int, Settings], Tensor]
"""From a head, its maps (kinds of outputs, levels of each, ``(C, H, W)``), the level and the test
config to the places of that level which may hold a box that the head's own code would keep."""


def _classes(head: DenseHead, cls_score: Tensor) -> Scores:
    channels = head.cls_out_channels
    groups = cls_score.shape[0] // channels
    if head.use_sigmoid_cls:
        return Scores(groups, channels, 0, channels)
    return Scores(groups, channels, 0, channels - 1, background=True)


def _thresholded(
    head: DenseHead, maps: Sequence[Sequence[Tensor]], level: int, settings: Settings
) -> Tensor:
    """``filter_scores_and_topk`` of a level: scores above ``score_thr``, the ``nms_pre`` largest.

    The share of a class in a softmax is at most the sigmoid of its logit less the background's.
    """
    cls_score = maps[0][level]
    threshold = least_logit(settings.get('score_thr', 0))
    most = settings.get('nms_pre', -1) if head.use_sigmoid_cls else 0
    return select_places(cls_score, _classes(head, cls_score), threshold, most)


def _proposals(
    head: DenseHead, maps: Sequence[Sequence[Tensor]], level: int, settings: Settings
) -> Tensor:
    """The ``nms_pre`` best of a level, whatever their scores are."""
    cls_score = maps[0][level]
    most = settings.get('nms_pre', -1)
    return select_places(cls_score, _classes(head, cls_score), float('-inf'), most)


def _yolov3(
    head: DenseHead, maps: Sequence[Sequence[Tensor]], level: int, settings: Settings
) -> Tensor:
    """Anchors whose objectness reaches ``conf_thr`` with a class above ``score_thr``."""
    pred_map = maps[0][level]
    groups = head.num_base_priors
    scores = Scores(groups, head.num_attrib, 5, head.num_attrib - 5)
    gate = pred_map, 4, head.num_attrib, least_logit(settings.get('conf_thr', -1))
    return select_places(pred_map, scores, least_logit(settings.get('score_thr', 0)), gate=gate)


def _yolox(
    head: DenseHead, maps: Sequence[Sequence[Tensor]], level: int, settings: Settings
) -> Tensor:
    """Objectness times the best class reaches ``score_thr`` only where both do."""
    cls_score, objectness = maps[0][level], maps[2][level]
    threshold = least_logit(settings.score_thr)
    channels = head.cls_out_channels
    gate = objectness, 0, 1, threshold
    return select_places(cls_score, Scores(1, channels, 0, channels), threshold, gate=gate)


_RULES: dict[tuple[Any, Any], Rule] = {
    (BaseDenseHead.predict_by_feat, BaseDenseHead._predict_by_feat_single): _thresholded,
    (BaseDenseHead.predict_by_feat, GFLHead._predict_by_feat_single): _thresholded,
    (BaseDenseHead.predict_by_feat, RPNHead._predict_by_feat_single): _proposals,
    (YOLOV3Head.predict_by_feat, BaseDenseHead._predict_by_feat_single): _yolov3,
    (YOLOXHead.predict_by_feat, BaseDenseHead._predict_by_feat_single): _yolox,
}
"""By the functions that make boxes; a head with others of its own has no rule."""

_SLICED = {BaseDenseHead._bbox_post_process, RPNHead._bbox_post_process}
_POST = {*_SLICED, YOLOXHead._bbox_post_process}


def find_rule(head: nn.Module) -> Rule | None:
    """The rule for a dense head of MMDetection or one derived from it; None for another."""
    kind = type(head)
    several = getattr(kind, 'predict_by_feat', None)
    rule = _RULES.get((several, getattr(kind, '_predict_by_feat_single', None)))
    if rule is None or getattr(kind, '_bbox_post_process', None) not in _POST:
        return None
    if getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False):
        return None
    complete = vars(head).get('test_cfg') and 'prior_generator' in vars(head)
    return rule if complete else None


def ends_early(head: nn.Module) -> bool:
    """Whether the head keeps its first ``max_per_img`` boxes after suppression and no others."""
    return getattr(type(head), '_bbox_post_process', None) in _SLICED


def worth(places: Tensor, count: int) -> Places:
    """``places`` of ``count``, or None where most of them are needed: a copy would cost more."""
    return None if 2 * len(places) >= count else places
