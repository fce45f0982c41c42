"""The small stock detector of configs/quickstart with random weights, as a checkpoint file."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from torch import nn

from mmclipq.apis import build_detector, quantize, save_int8

CONFIGS = Path(__file__).parents[2] / 'configs'
QUICKSTART = 'quickstart/yolov3_mobilenetv2_digits.py'


def random_detector(cfg):
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.1, 0.5)
            nn.init.normal_(layer.running_mean, 0, 0.1)
    for layer in model.bbox_head.convs_pred:
        nn.init.normal_(layer.weight, 0, 0.2)
    return model


@pytest.fixture
def float_model(cfg):
    """Random weights; batch norms as after training; predictions above the score threshold."""
    return random_detector(cfg)


@pytest.fixture(scope='session')
def intact(tmp_path_factory):
    """A ``.clipq`` file; never written to."""
    cfg = Config.fromfile(CONFIGS / QUICKSTART)
    model = random_detector(cfg)
    path = tmp_path_factory.mktemp('intact') / 'intact.clipq'
    quantized = quantize(model, [torch.rand(1, 3, 64, 96)])
    save_int8(path, model, quantized, cfg, {'classes': tuple('0123456789')})
    return path


@pytest.fixture
def checkpoint(float_model, tmp_path):
    path = tmp_path / 'float.pth'
    meta = {'dataset_meta': {'classes': tuple('0123456789'), 'palette': [(1, 2, 3)] * 10}}
    save_checkpoint({'state_dict': float_model.state_dict(), 'meta': meta}, str(path))
    return path
