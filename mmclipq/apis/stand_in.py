"""Something to compute for the parts of a detector that find nothing to do in calibration."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

_SHARES = (0.25, 0.5)
_STEPS = 3


def grid_of_boxes(shape: Sequence[int], like: Tensor) -> Tensor:
    """Boxes ``(18, 4)`` of two sizes spread over an image of ``shape`` (height, width)."""
    height, width = shape[:2]
    boxes = []
    for share in _SHARES:
        starts = torch.linspace(0, 1 - share, _STEPS)
        for top in starts:
            boxes += [[left, top, left + share, top + share] for left in starts]
    return like.new_tensor(boxes) * like.new_tensor([width, height, width, height])


@contextmanager
def regions_where_none_are_proposed(detector: nn.Module) -> Iterator[None]:
    """Inside, the RoI head of ``detector`` gets a grid of boxes on images without proposals."""
    roi_head = getattr(detector, 'roi_head', None)
    if roi_head is None:
        yield
        return
    predict = roi_head.predict

    def with_regions(
        features: Any, proposals: list[InstanceData], samples: list[DetDataSample], **options: Any
    ) -> Any:
        given = []
        for found, sample in zip(proposals, samples, strict=True):
            if not len(found):
                boxes = grid_of_boxes(sample.img_shape, found.bboxes)
                labels = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
                found = InstanceData(bboxes=boxes, labels=labels, scores=boxes.new_ones(len(boxes)))
            given.append(found)
        return predict(features, given, samples, **options)

    roi_head.predict = with_regions
    try:
        yield
    finally:
        del roi_head.predict


@contextmanager
def every_score_counts(detector: nn.Module) -> Iterator[None]:
    """Inside, no detection is dropped for its score, so that masks have something to be of."""
    configs = [vars(module).get('test_cfg') for module in detector.modules()]
    changed: list[tuple[MutableMapping[str, Any], float]] = []

    def lower(config: Any) -> None:
        if not isinstance(config, MutableMapping):
            return
        if isinstance(config.get('score_thr'), (int, float)) and config['score_thr'] >= 0:
            changed.append((config, config['score_thr']))
            config['score_thr'] = -1.0
        for inner in config.values():
            lower(inner)

    for config in configs:
        lower(config)
    try:
        yield
    finally:
        for config, before in changed:
            config['score_thr'] = before
