"""Channels that are pruned, and files of what is left that train and convert on."""

import importlib.util

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmclipq.apis import build_detector, load_float_checkpoint, load_int8, quantize, save_int8
from mmclipq.apis import prune_channels as module
from mmclipq.apis.prune_channels import prune_channels, prune_checkpoint
from mmclipq.errors import ClipQError

needs_library = pytest.mark.skipif(
    importlib.util.find_spec('torch_pruning') is None, reason='needs torch-pruning'
)


@pytest.fixture
def float_model(float_model):
    """With batch-norm scales that differ, as after training."""
    for layer in float_model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.2, 1)
    return float_model


@needs_library
def test_files_of_a_pruned_detector_go_on(cfg, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_STEPS', 45)
    report = prune_checkpoint(cfg, checkpoint, tmp_path / 'out', 0.3)
    assert report.after <= 0.7 * report.before
    assert report.after > 0.6 * report.before
    assert report.weights[1] < 0.9 * report.weights[0]
    pruned = Config.fromfile(report.config)
    assert pruned.load_from == str(report.checkpoint)
    detector = build_detector(pruned.model).eval()
    content = load_float_checkpoint(detector, report.checkpoint)
    assert content['meta']['dataset_meta']['classes'] == tuple('0123456789')
    changed = [
        layer.out_channels
        for name, layer in detector.named_modules()
        if isinstance(layer, nn.Conv2d) and name in pruned.model.widths
    ]
    assert len(changed) > 20
    assert [convolution.out_channels for convolution in detector.bbox_head.convs_pred] == [45] * 3
    image = torch.rand(1, 3, 64, 96)
    quantized = quantize(detector, [image])
    save_int8(tmp_path / 'a.clipq', detector, quantized, pruned, {})
    load_int8(tmp_path / 'a.clipq')
    again = prune_checkpoint(pruned, report.checkpoint, tmp_path / 'again', 0.1)
    assert again.before == report.after
    assert Config.fromfile(again.config).model.detector == cfg.model


@needs_library
def test_the_channels_of_least_scale_go(float_model, monkeypatch):
    for layer in float_model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data[::2] = 1e-3
    before = float_model.bbox_head.convs_bridge[0].conv.weight.detach().clone()
    monkeypatch.setattr(module, '_STEPS', 45)
    prune_channels(float_model, 0.3, round_to=1)
    for name, layer in float_model.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.weight.min() < 0.01:
            assert layer.weight.max() > 0.01, name
    left = float_model.bbox_head.convs_bridge[0]
    assert (left.bn.weight > 0.01).sum() == (len(before) + 1) // 2


@needs_library
def test_more_than_can_go(float_model, monkeypatch):
    monkeypatch.setattr(module, '_STEPS', 2)
    monkeypatch.setattr(module, '_MOST', 0.1)
    with pytest.raises(ClipQError, match=r'--operations: found \d+\.\d% .* wanted 95\.0%'):
        prune_channels(float_model, 0.95)


def test_without_the_library(float_model, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'torch_pruning', None)
    with pytest.raises(ClipQError, match='found no package torch_pruning'):
        prune_channels(float_model, 0.3)
