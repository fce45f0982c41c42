"""Heads that make boxes of promising places alone, by their own code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from .decoding import Decoder, find_decoder
from .mixing import mix_in
from .places import Chosen, ChosenPriors, gathered, showing
from .rules import DenseHead, Rule, ends_early, find_rule, worth
from .settings import CurrentSettings, least_logit


def _plain(tree: Any) -> bool:
    """Whether all tensors are float32 ones with memory on the CPU."""
    return all(
        type(x) is Tensor and x.device.type == 'cpu' and x.dtype == torch.float32
        for kind in tree
        for x in kind
    )


class FastDenseHead:
    """Mixed into a dense head's class: its own code gets the places that may hold boxes.

    Boxes, scores, labels and their order are those of the whole maps, to the last bit where PyTorch
    computes the whole maps' sigmoid in one go. Where it splits that work, between threads from
    32768 scores on or because the batch has several images, a score can differ in its last bit:
    PyTorch rounds otherwise at the end of each share.
    """

    fast_rule: Rule
    fast_decoder: Decoder | None
    fast_settings: CurrentSettings
    test_cfg: Mapping[str, Any]

    def predict_by_feat(
        self, *maps: Any, batch_img_metas: Sequence[dict], cfg: Any = None, **options: Any
    ) -> list:
        """As the stock head's."""
        stock = super().predict_by_feat  # type: ignore[misc]  # of the class behind this one
        maps = tuple(kind for kind in maps if kind is not None)
        levels = len(maps[0])
        if cfg is not None or not _plain(maps) or any(len(kind) != levels for kind in maps):
            return stock(*maps, batch_img_metas=batch_img_metas, cfg=cfg, **options)
        sizes, *others = (tuple(tuple(x.shape[2:]) for x in kind) for kind in maps)
        if any(other != sizes for other in others):
            return stock(*maps, batch_img_metas=batch_img_metas, cfg=cfg, **options)
        settings = self.fast_settings.of(self.test_cfg)
        if self.fast_decoder is not None:
            found = self.fast_decoder(self, maps, batch_img_metas, settings, **options)
            if found is not None:
                return found
        results: list = []
        for number, meta in enumerate(batch_img_metas):
            own = [[x[number].detach() for x in kind] for kind in maps]
            places = tuple(
                worth(
                    self.fast_rule(cast(DenseHead, self), own, level, settings),
                    math.prod(size),
                )
                for level, size in enumerate(sizes)
            )
            given = [[gathered(x, p) for x, p in zip(kind, places, strict=True)] for kind in own]
            with showing(Chosen(sizes, places)):
                results += stock(*given, batch_img_metas=[meta], cfg=settings, **options)
        return results


class FastBoxHead:
    """Mixed into a box head's class: its own code gets the regions that may hold boxes.

    The share of a class in a softmax is at most the sigmoid of its logit less the background's.
    """

    fast_settings: CurrentSettings

    def predict_by_feat(
        self, rois: Sequence[Tensor], cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor],
        batch_img_metas: list[dict], rcnn_test_cfg: Any = None, rescale: bool = False,
    ) -> list:  # fmt: skip
        """As the stock head's."""
        given = [rois, cls_scores, bbox_preds]
        regular = all(isinstance(kind, (tuple, list)) for kind in given) and _plain(given)
        if rcnn_test_cfg is not None and regular:
            least = least_logit(rcnn_test_cfg.score_thr)
            rows = [_promising(scores, least) for scores in cls_scores]
            given = [[x[r] for x, r in zip(kind, rows, strict=True)] for kind in given]
            rcnn_test_cfg = self.fast_settings.of(rcnn_test_cfg)
        stock = super().predict_by_feat  # type: ignore[misc]  # of the class behind this one
        return stock(*given, batch_img_metas, rcnn_test_cfg, rescale)


def _promising(scores: Tensor, least: float) -> Tensor:
    """Numbers of the regions with a class whose logit exceeds the background's by ``least``."""
    if not scores.numel():
        return torch.zeros(0, dtype=torch.int64)
    rows = torch.nonzero(~(scores[:, :-1].amax(1) - scores[:, -1] < least)).flatten()
    return rows if len(rows) else rows.new_zeros(1)


def _box_heads(roi_head: nn.Module) -> list[nn.Module]:
    heads = getattr(roi_head, 'bbox_head', None)
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads] if heads else []


def quicken_heads(detector: nn.Module) -> None:
    """Let a detector's heads look at promising places alone when they predict.

    Heads with code of their own for this step keep it.
    """
    for module in list(detector.modules()):
        if (rule := find_rule(module)) is not None:
            priors = vars(module)['prior_generator']
            vars(module).update(
                fast_rule=rule,
                fast_decoder=find_decoder(module),
                fast_settings=CurrentSettings(ends_early(module)),
                prior_generator=ChosenPriors(priors),
            )
            mix_in(module, FastDenseHead, 'Fast')
        if isinstance(module, StandardRoIHead) and module.test_cfg:
            for head in _box_heads(module):
                if _has_stock_boxes(head):
                    vars(head).update(fast_settings=CurrentSettings(sliced=True))
                    mix_in(head, FastBoxHead, 'Fast')


def _has_stock_boxes(head: nn.Module) -> bool:
    names = ('predict_by_feat', '_predict_by_feat_single')
    return not getattr(head, 'custom_cls_channels', False) and all(
        getattr(type(head), name, None) is getattr(BBoxHead, name) for name in names
    )
