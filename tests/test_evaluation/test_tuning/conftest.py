"""A shallow detector, calibrated, and images to measure it on. Random weights of a deep one would
make noise of every difference."""

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from mmclipq.apis import build_detector
from mmclipq.apis.calibration_data import config_batches, with_instances
from mmclipq.apis.quantize_model import calibrate
from mmclipq.calibration.options import CalibrationOptions
from mmclipq.evaluation.tuning.held_out import HeldOut
from mmclipq.evaluation.tuning.sensitivity import in_float


@MODELS.register_module(force=True)
class ShallowBackbone(nn.Module):
    """Three convolutions and a residual; features of strides 8 and 16."""

    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, channels, 5, 4, 2), nn.Conv2d(channels, channels, 3, 2, 1)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.c, self.d = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x):
        x = self.act(self.norm(self.b(self.act(self.a(x)))))
        x = x + self.act(self.c(x))
        return x, self.act(self.d(x))


@pytest.fixture
def cfg(cfg):
    """The digits with a RetinaNet of eight layers."""
    cfg.model = dict(
        type='RetinaNet',
        data_preprocessor=cfg.model.data_preprocessor,
        backbone=dict(type='ShallowBackbone'),
        neck=None,
        bbox_head=dict(
            type='RetinaHead', num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                strides=[8, 16],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0] * 4, target_stds=[1] * 4),
        ),
        test_cfg=dict(
            nms_pre=300, min_bbox_size=0, score_thr=0.05, max_per_img=30,
            nms=dict(type='nms', iou_threshold=0.5),
        ),
    )  # fmt: skip
    return cfg


@pytest.fixture
def detector(cfg):
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True)
    backbone, head = model.backbone, model.bbox_head
    nn.init.normal_(head.retina_cls.weight, 0, 0.15)
    nn.init.constant_(head.retina_cls.bias, -1.0)
    for conv in (head.cls_convs[0].conv, head.reg_convs[0].conv):
        nn.init.kaiming_normal_(conv.weight)
    backbone.norm.momentum = None
    backbone.norm.train()
    with torch.no_grad():
        for batch in config_batches(cfg, 4):
            backbone(model.data_preprocessor(batch, False)['inputs'])
    return model.eval()


@pytest.fixture
def session(cfg, detector):
    session = calibrate(detector, config_batches(cfg, 4))
    session.choose(CalibrationOptions())
    return session


@pytest.fixture
def held_out(cfg, session):
    """Images whose objects are what the float detector finds: its AP is 1."""
    held = HeldOut(session.model, config_batches(with_instances(cfg), 4, held=4))
    with in_float(session):
        found = held.found(session.predict)
    for info, one in zip(held.infos, found, strict=True):
        info['instances'] = [
            {'bbox': box.tolist(), 'bbox_label': int(label), 'ignore_flag': 0}
            for box, label in zip(one.boxes, one.labels, strict=True)
        ]
    return held
