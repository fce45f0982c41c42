"""Clipped convolutions with adaptive padding, standardized weights, and transposed ones."""

import copy

import pytest
import torch
from mmcv.cnn import ConvWS2d
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import nn

from mmclipq import fixed_point as fp
from mmclipq.layers import ClipConvAdaptive, ClipConvTranspose, ClipConvWS
from mmclipq.models.losses import LqLoss
from mmclipq.prepare import clip_layers, find_weight_ranges, prepare_model, restore_model

STOCK = {
    'adaptive': (lambda: Conv2dAdaptivePadding(4, 6, 3, stride=2), ClipConvAdaptive),
    'adaptive depthwise': (lambda: Conv2dAdaptivePadding(4, 4, 5, groups=4), ClipConvAdaptive),
    'standardized': (lambda: ConvWS2d(4, 6, 3, padding=1), ClipConvWS),
    'transposed': (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), ClipConvTranspose),
    'transposed wrapper': (
        lambda: wrappers.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
        ClipConvTranspose,
    ),
}
KINDS = pytest.mark.parametrize(('make', 'clipped'), STOCK.values(), ids=STOCK.keys())


def run(model, x):
    """Result and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]


@KINDS
@pytest.mark.parametrize('size', [(7, 8), (5, 5)])
def test_wide_ranges_change_nothing(make, clipped, size):
    torch.manual_seed(0)
    stock = nn.Sequential(make())
    model = copy.deepcopy(stock)
    prepare_model(model, input_range=64, weight_range=64)
    assert type(model[0]) is clipped
    assert list(model.state_dict()) == list(stock.state_dict())
    x = torch.randn(2, 4, *size)
    for found, wanted in zip(run(model, x), run(stock, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    restore_model(model)
    assert type(model[0]) is type(stock[0])


@KINDS
def test_narrow_ranges_clip_input_and_weights(make, clipped):
    torch.manual_seed(0)
    stock = nn.Sequential(make())
    model = copy.deepcopy(stock)
    prepare_model(model, input_range=0.5, weight_range=2**-4)
    (_, layer) = next(clip_layers(model))
    x = torch.randn(2, 4, 6, 6)
    weight = fp.clip(layer.product_weight().detach(), -4)
    layer.product_weight = lambda: weight
    layer.weight_exponent = None
    expected = model(x.clamp(-0.5, 0.5))
    del layer.product_weight
    layer.weight_exponent = -4
    torch.testing.assert_close(model(x), expected)


def test_the_range_is_that_of_the_standardized_weights():
    layer = ConvWS2d(4, 6, 3)
    with torch.no_grad():
        layer.weight.mul_(1e-3).add_(7)
    model = nn.Sequential(layer)
    prepare_model(model)
    find_weight_ranges(model)
    largest = float(layer.product_weight().abs().max())
    assert layer.weight_exponent == fp.holding_exponent(largest)


def test_lq_pulls_the_standardized_weights():
    torch.manual_seed(0)
    model = nn.Sequential(ConvWS2d(4, 6, 3))
    prepare_model(model)
    find_weight_ranges(model)
    layers = [layer for _, layer in clip_layers(model)]
    loss = LqLoss(1.0)(layers)
    weight = layers[0].product_weight()
    expected = (weight - fp.quantize(weight, layers[0].weight_exponent)).square().sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert layers[0].weight.grad.abs().sum() > 0
