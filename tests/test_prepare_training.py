"""A training step after prepare_model whose ranges clip nothing is the stock step, bit for bit.

On one detector of each kind, with activations in place, layers that levels share, gradient
checkpointing, and autocast to bfloat16.
"""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mmdet
import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from mmclipq.evaluation.coverage.fresh import (
    annotated,
    fresh_detector,
    number_of_classes,
    trial_config,
)
from mmclipq.evaluation.coverage.synthetic import synthetic_batch
from mmclipq.evaluation.coverage.trial import training_step
from mmclipq.fixed_point import EXPONENT_MAX
from mmclipq.prepare import clip_layers, prepare_model

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
WIDEST = 2.0**EXPONENT_MAX
SIZE = 64


def small_resnet(model: dict) -> None:
    model['backbone']['depth'] = 18
    model['neck']['in_channels'] = [64, 128, 256, 512]


def three_layers(model: dict) -> None:
    model['encoder']['num_layers'] = model['decoder']['num_layers'] = 3


DETECTORS: dict[str, tuple[str, Callable[[dict], None]]] = {
    'one-stage': ('retinanet/retinanet_r18_fpn_1x_coco.py', lambda model: None),
    'two-stage': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', small_resnet),
    'group-norm': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', small_resnet),
    'shared-head': ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', lambda model: None),
    'transformer': ('detr/detr_r18_8xb2-500e_coco.py', three_layers),
    'instance': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', small_resnet),
}


def detector(kind: str, with_cp: bool = False) -> tuple[nn.Module, dict]:
    """A fresh detector and two images with objects."""
    name, change = DETECTORS[kind]
    cfg = trial_config(str(CONFIGS / name))
    change(cfg.model)
    if with_cp:
        cfg.model.backbone.with_cp = True
    batch = synthetic_batch(SIZE, number_of_classes(cfg), 2, 0, **annotated(cfg))
    model, _ = fresh_detector(cfg, batch, seed=0)
    return model.train(), batch


def steps(model: nn.Module, batch: dict) -> tuple[dict, dict, nn.Module]:
    """Losses and gradients of the stock step and of the prepared one, and the prepared model."""
    prepared = copy.deepcopy(model)
    prepare_model(prepared, input_range=WIDEST, weight_range=WIDEST)
    found = []
    for each in (model, prepared):
        losses, gradients = training_step(each, batch, seed=0)
        found.append({**{f'loss {key}': value for key, value in losses.items()}, **gradients})
    return *found, prepared


def assert_same(stock: dict, prepared: dict) -> None:
    assert prepared.keys() == stock.keys()
    assert [key for key in stock if not torch.equal(prepared[key], stock[key])] == []
    assert any(value.any() for value in stock.values())


@pytest.mark.parametrize('kind', DETECTORS)
def test_prepared_step_is_the_stock_step(kind):
    model, batch = detector(kind)
    stock, found, prepared = steps(model, batch)
    assert_same(stock, found)
    trained = {name: p for name, p in prepared.named_parameters() if name in found}
    assert trained.keys() >= {f'{name}.weight' for name, layer in clip_layers(prepared)
                              if layer.weight.grad is not None}  # fmt: skip
    # The optimizer's step, too.
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, prepared.get_parameter(name)), name


def test_layers_that_levels_share_are_prepared_once():
    model, batch = detector('shared-head')
    stock, found, prepared = steps(model, batch)
    towers = prepared.bbox_head.cls_convs
    assert towers[0][0].conv is towers[1][0].conv
    name = 'bbox_head.cls_convs.0.0.conv.weight'
    assert torch.equal(found[name], stock[name])
    assert found[name].any()


def test_activations_in_place_follow_clipped_layers_with_and_without_weights_that_train():
    layers = nn.Sequential(
        *(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.SiLU(inplace=True)),
        *(nn.Linear(4, 4), nn.LeakyReLU(0.1, inplace=True)),
    )
    layers[2].requires_grad_(False)
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    wanted = []
    for prepare in (False, True):
        if prepare:
            prepare_model(layers, input_range=WIDEST, weight_range=WIDEST)
        given = x.clone().requires_grad_()
        out = layers(given)
        out.square().sum().backward()
        wanted.append([out.detach(), given.grad, layers[0].weight.grad.clone()])
        layers.zero_grad()
    for stock, found in zip(*wanted, strict=True):
        assert torch.equal(stock, found)


def test_gradient_checkpointing_changes_nothing(monkeypatch):
    calls = []
    run = checkpoint.checkpoint

    def counted(function, *args, **kwargs):
        calls.append(function)
        return run(function, *args, use_reentrant=False)

    monkeypatch.setattr('mmdet.models.backbones.resnet.cp.checkpoint', counted)
    model, batch = detector('one-stage', with_cp=True)
    stock, found, _ = steps(model, batch)
    assert len(calls) == 2 * 5  # blocks behind the first one that trains
    assert_same(stock, found)


def repeated_step(model, batch):
    """The stock step, if it is the same twice: on some processors PyTorch's kernels in bfloat16
    leave single gradients that are not, or not finite."""
    try:
        (losses, stock), (_, again) = (
            training_step(copy.deepcopy(model), batch, seed=0) for _ in range(2)
        )
    except ValueError as error:
        pytest.skip(f'the stock step fails on this processor: {error}')
    if not all(torch.equal(stock[key], again[key]) for key in stock):
        pytest.skip('the stock step does not repeat itself on this processor')
    return losses, stock


@pytest.mark.parametrize(
    ('kind', 'layer'),
    [('group-norm', 'bbox_head.conv_cls'), ('transformer', 'decoder.layers.0.ffn.layers.1')],
)
def test_autocast_gives_the_stock_step(kind, layer):  # fmt: skip
    model, batch = detector(kind)
    calls = Counter()
    dtypes = set()

    def look(name: str, output: torch.Tensor) -> None:
        calls[name] += 1
        dtypes.add(output.dtype)

    prepared = copy.deepcopy(model)
    prepare_model(prepared, input_range=WIDEST, weight_range=WIDEST)
    for name, clipped in clip_layers(prepared):
        clipped.register_forward_hook(lambda m, args, out, name=name: look(name, out))
    with torch.autocast('cpu', torch.bfloat16):
        losses, stock = repeated_step(model, batch)
        own_losses, found = training_step(prepared, batch, seed=0)
    assert dtypes == {torch.bfloat16}
    assert_same(losses, own_losses)
    assert found[f'{layer}.weight'].any()
    once = {name for name in stock if calls[name.rpartition('.')[0]] < 2}
    assert_same({k: stock[k] for k in once}, {k: found[k] for k in once})
    # Autocast keeps one copy of a weight in bfloat16, on which the gradients of several calls add
    # up in bfloat16; a clipped layer adds them up in float32.
    for name in stock.keys() - once:
        tolerance = calls[name.rpartition('.')[0]] * 2**-8 * stock[name].abs().max()
        assert (found[name] - stock[name]).abs().max() <= tolerance, name
