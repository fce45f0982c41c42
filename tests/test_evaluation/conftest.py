"""A quantized detector with learnt-like statistics on the tiny digits data."""

import pytest
import torch
from torch import nn

from mmclipq.apis import build_detector, quantize, save_int8
from mmclipq.apis.calibration_data import config_batches
from mmclipq.prepare import prepare_model


def make_model(cfg) -> nn.Module:
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.running_var, 0.3, 3)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    prepare_model(model)
    return model


@pytest.fixture
def cfg(load_config):
    return load_config('quickstart/yolov3_mobilenetv2_digits.py')


@pytest.fixture
def model(cfg):
    return make_model(cfg)


@pytest.fixture
def quantized(cfg, model):
    return quantize(model, config_batches(cfg, 4))


@pytest.fixture
def checkpoints(cfg, model, quantized, tmp_path):
    """A float checkpoint and the ``.clipq`` file made from it."""
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    save_int8(tmp_path / 'int8.clipq', model, quantized, cfg, {'classes': tuple('0123456789')})
    return tmp_path / 'float.pth', tmp_path / 'int8.clipq'
