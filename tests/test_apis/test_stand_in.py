"""Regions and scores that stand in where a detector finds nothing in calibration."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from mmclipq.apis.stand_in import (
    every_score_counts,
    grid_of_boxes,
    regions_where_none_are_proposed,
)


def test_boxes_lie_in_the_image():
    boxes = grid_of_boxes((40, 80), torch.zeros(0))
    assert boxes.shape == (18, 4)
    assert boxes.min() == 0
    assert boxes[:, 2].max() == 80
    assert boxes[:, 3].max() == 40
    sizes = {tuple(size) for size in (boxes[:, 2:] - boxes[:, :2]).round().int().tolist()}
    assert sizes == {(20, 10), (40, 20)}
    assert len({tuple(box) for box in boxes.tolist()}) == 18


class RoIHead(nn.Module):
    def predict(self, features, proposals, samples, rescale=False):
        return [len(found) for found in proposals], proposals[-1].scores.unique().tolist(), rescale


def proposals(count):
    boxes = torch.rand(count, 4)
    return InstanceData(bboxes=boxes, scores=torch.full((count,), 0.5))


def test_only_images_without_proposals_get_regions():
    detector = nn.Module()
    detector.roi_head = RoIHead()
    samples = [DetDataSample(metainfo={'img_shape': (40, 80)})] * 2
    given = [proposals(3), proposals(0)]
    with regions_where_none_are_proposed(detector):
        found = detector.roi_head.predict(None, given, samples, rescale=True)
        assert found == ([3, 18], [1.0], True)
    assert 'predict' not in vars(detector.roi_head)
    assert len(given[1]) == 0
    with regions_where_none_are_proposed(nn.Module()):
        pass


@pytest.mark.parametrize('fails', [False, True])
def test_thresholds_come_back(fails):
    detector = nn.Module()
    config = ConfigDict(rcnn=dict(score_thr=0.05, nms=dict(iou_threshold=0.5)), score_thr=0.3)
    detector.test_cfg = config
    detector.head = nn.Module()
    detector.head.test_cfg = config.rcnn
    detector.other = nn.Module()
    detector.other.test_cfg = None
    try:
        with every_score_counts(detector):
            assert (config.score_thr, config.rcnn.score_thr) == (-1.0, -1.0)
            assert config.rcnn.nms.iou_threshold == 0.5
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert (config.score_thr, config.rcnn.score_thr) == (0.3, 0.05)
