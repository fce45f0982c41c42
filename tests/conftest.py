"""Fixtures shared by all tests: a tiny data set of real pixels and a small stock detector."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmclipq.apis import build_detector, quantize
from mmclipq.apis.calibration_data import config_batches
from mmclipq.prepare import prepare_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session', autouse=True)
def _one_thread():
    """Tensors here are tiny: a second thread costs more than it brings on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory) -> Path:
    """A digits data set of 12 training and 6 validation images of 96x128 pixels."""
    root = tmp_path_factory.mktemp('digits') / 'data'
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'make_digits.py')]
    options = ['--out', str(root), '--train', '12', '--val', '6', '--size', '96', '128']
    subprocess.run([*command, *options], check=True, capture_output=True)
    return root


@pytest.fixture(scope='session')
def without_workers() -> str:
    """Lines of a config whose images are read without worker processes."""
    return ''.join(
        f'{split}_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        for split in ('train', 'val', 'test')
    )


@pytest.fixture
def load_config(digits_root, monkeypatch):
    """Loads a config of this repository on the tiny data, without worker processes."""
    from mmengine.config import Config

    monkeypatch.setenv('DIGITS_ROOT', str(digits_root))

    def load(name: str, **overrides) -> Config:
        cfg = Config.fromfile(ROOT / 'configs' / name)
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            cfg[loader].update(num_workers=0, persistent_workers=False)
            cfg[loader].pop('prefetch_factor', None)
        cfg.merge_from_dict(overrides)
        return cfg

    return load


@pytest.fixture
def cfg(load_config):
    """The small stock detector of configs/quickstart."""
    return load_config('quickstart/yolov3_mobilenetv2_digits.py')


@pytest.fixture
def model(cfg) -> nn.Module:
    """It prepared, with random weights and learnt-like statistics."""
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
def quantized(cfg, model):
    """Its integer graph, calibrated on the tiny digits data."""
    return quantize(model, config_batches(cfg, 4))


@pytest.fixture(scope='session')
def emulated(tmp_path_factory):
    """The CUDA kernels compiled for the CPU, see ``test_backends/emulation.py``."""
    import emulation

    if emulation.REASON:
        pytest.skip(emulation.REASON)
    return emulation.compile_emulation(tmp_path_factory.mktemp('cuda') / 'emulated.so')
