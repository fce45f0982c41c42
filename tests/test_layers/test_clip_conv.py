"""ClipConv equals conv(clamp(x), clamp(w)) of plain autograd, outputs and all gradients."""

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn

from mmclipq.errors import ClipQError
from mmclipq.layers import ClipConv

INPUT, WEIGHT = 2.0, 0.25
GEOMETRIES = {
    'plain': dict(args=(3, 4, 3), size=(2, 7, 9)),
    'one channel': dict(args=(1, 1, 1), size=(1, 1, 1)),
    '255 outputs': dict(args=(3, 255, 1), size=(1, 5, 3)),
    '255 groups': dict(args=(255, 255, 3), size=(1, 5, 5), groups=255, padding=1),
    'groups': dict(args=(6, 4, 3), size=(2, 6, 5), groups=2, padding=1),
    'stride': dict(args=(3, 5, 3), size=(2, 9, 8), stride=(2, 3), padding=(0, 2)),
    'stride leaves a rest': dict(args=(3, 4, 2), size=(1, 8, 9), stride=3),
    'dilation': dict(args=(2, 3, (3, 2)), size=(1, 11, 9), dilation=(2, 3), padding=2),
    'no bias': dict(args=(3, 4, 3), size=(2, 5, 5), bias=False, padding=1),
    'reflect': dict(args=(2, 3, 3), size=(2, 5, 6), padding=(1, 2), padding_mode='reflect'),
    'replicate': dict(args=(2, 3, 3), size=(2, 5, 6), padding=2, padding_mode='replicate'),
    'circular': dict(args=(2, 3, 3), size=(2, 5, 6), padding=(2, 1), padding_mode='circular'),
    'same': dict(args=(3, 4, 3), size=(2, 6, 7), padding='same', dilation=2),
    'same with even kernel': dict(args=(3, 4, (2, 4)), size=(2, 6, 7), padding='same'),
    'same, reflect': dict(args=(2, 3, 4), size=(1, 6, 7), padding='same', padding_mode='reflect'),
    'valid': dict(args=(3, 4, 3), size=(1, 6, 7), padding='valid'),
    'empty batch': dict(args=(3, 4, 3), size=(0, 6, 7), padding=1),
    'empty batch, same': dict(args=(3, 4, 2), size=(0, 6, 7), padding='same'),
}


@pytest.fixture
def pair(hurting, whole_numbers):
    """``pair(args, size, **options)``: a ClipConv, its stock twin, two equal inputs."""

    def make(args, size, input_range=INPUT, weight_range=WEIGHT, round=False, **options):
        stock = nn.Conv2d(*args, **options)
        stock.weight.data.copy_(hurting(stock.weight.shape, WEIGHT, seed=3))
        if stock.bias is not None:
            stock.bias.data.copy_(whole_numbers(stock.bias.shape))
        clipped = ClipConv(
            *args, input_range=input_range, weight_range=weight_range, round=round, **options
        )
        clipped.load_state_dict(stock.state_dict())
        x = hurting((size[0], args[0], *size[1:]), INPUT)
        return clipped, stock, x.clone().requires_grad_(), x.clone().requires_grad_()

    return make


def assert_same_gradients(clipped, stock, x, other):
    assert torch.equal(x.grad, other.grad)
    assert torch.equal(clipped.weight.grad, stock.weight.grad)
    if stock.bias is not None:
        assert torch.equal(clipped.bias.grad, stock.bias.grad)


@pytest.mark.parametrize('rounded', [False, True], ids=['clip', 'round'])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_equals_plain_autograd(name, rounded, pair, plain_limit, whole_numbers):
    clipped, stock, x, other = pair(**GEOMETRIES[name], round=rounded)
    output = clipped(x)
    weight = plain_limit(stock.weight, WEIGHT, rounded)
    wanted = stock._conv_forward(plain_limit(other, INPUT, rounded), weight, stock.bias)
    assert torch.equal(output, wanted)
    grad = whole_numbers(wanted.shape)
    output.backward(grad)
    wanted.backward(grad)
    assert_same_gradients(clipped, stock, x, other)
    if x.numel() > 1:
        assert (x.grad[x.abs() > INPUT] == 0).all()
        assert (x.abs() > INPUT).any()


@pytest.mark.parametrize(
    ('input_range', 'weight_range'),
    [('auto', 'auto'), (INPUT, 'auto'), ('auto', WEIGHT)],
)
def test_an_open_range_does_not_clip(
    input_range, weight_range, pair, plain_limit, whole_numbers, hurting
):
    ranges = dict(input_range=input_range, weight_range=weight_range)
    clipped, stock, x, other = pair((3, 4, 3), (2, 7, 9), **ranges)
    bounds = [None if r == 'auto' else r for r in (input_range, weight_range)]
    output = clipped(x)
    wanted = stock._conv_forward(
        plain_limit(other, bounds[0]), plain_limit(stock.weight, bounds[1]), stock.bias
    )
    assert torch.equal(output, wanted)
    grad = whole_numbers(wanted.shape)
    output.backward(grad)
    wanted.backward(grad)
    assert_same_gradients(clipped, stock, x, other)


def test_unbatched_input_equals_a_batch_of_one(pair, whole_numbers):
    clipped, _, x, other = pair((3, 4, 3), (1, 7, 9), padding=1)
    single = x.detach()[0].requires_grad_()
    output, wanted = clipped(single), clipped(other)
    assert torch.equal(output, wanted[0])
    grad = whole_numbers(output.shape)
    output.backward(grad)
    wanted.backward(grad[None])
    assert torch.equal(single.grad, other.grad[0])


@pytest.mark.parametrize('frozen', ['x', 'weight', 'bias'])
def test_frozen_tensors_get_no_gradient(frozen, pair, whole_numbers):
    clipped, _, x, _ = pair((3, 4, 3), (2, 7, 9))
    tensors = {'x': x, 'weight': clipped.weight, 'bias': clipped.bias}
    clipped(x).backward(whole_numbers((2, 4, 5, 7)))
    grads = {name: tensor.grad for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad = None
    tensors[frozen].requires_grad_(False)
    clipped(x).backward(whole_numbers((2, 4, 5, 7)))
    for name, tensor in tensors.items():
        if name == frozen:
            assert tensor.grad is None
        else:
            assert torch.equal(tensor.grad, grads[name])


def test_channels_last_stays_channels_last(pair):
    clipped, _, x, other = pair((4, 6, 3), (2, 7, 9))
    output = clipped(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output, clipped(other))


@pytest.mark.parametrize('rounded', [False, True], ids=['clip', 'round'])
@pytest.mark.parametrize('name', ['plain', 'groups', 'no bias', 'reflect', 'empty batch'])
def test_autocast_equals_plain_autograd_under_the_same_cast(
    name, rounded, pair, plain_limit, whole_numbers
):
    clipped, stock, x, other = pair(**GEOMETRIES[name], round=rounded)
    with torch.autocast('cpu', torch.bfloat16):
        output = clipped(x)
        assert output.dtype == stock(other).dtype == torch.bfloat16
    weight = plain_limit(stock.weight.bfloat16(), WEIGHT, rounded)
    inputs = plain_limit(other.bfloat16(), INPUT, rounded)
    bias = None if stock.bias is None else stock.bias.bfloat16()
    wanted = stock._conv_forward(inputs, weight, bias)
    assert torch.equal(output, wanted)
    grad = whole_numbers(wanted.shape).bfloat16()
    output.backward(grad)
    wanted.backward(grad)
    assert clipped.weight.grad.dtype == torch.float32
    assert torch.isfinite(clipped.weight.grad).all()
    assert_same_gradients(clipped, stock, x, other)


@pytest.mark.parametrize('rounded', [False, True], ids=['clip', 'round'])
def test_only_the_very_input_and_weight_are_kept(rounded, pair, plain_limit, saved_for_backward):
    clipped, stock, x, other = pair((3, 4, 3), (2, 7, 9), round=rounded)
    kept, _ = saved_for_backward(lambda: clipped(x))
    assert sorted(kept) == sorted([x.data_ptr(), clipped.weight.data_ptr()])
    plain, _ = saved_for_backward(lambda: stock(plain_limit(other, INPUT, rounded)))
    assert len(set(plain)) > len(set(kept))


def test_nothing_is_changed_in_place(pair):
    clipped, _, x, other = pair((3, 4, 3), (2, 7, 9), round=True)
    weight = clipped.weight.detach().clone()
    clipped(x).sum().backward()
    assert torch.equal(x, other)
    assert torch.equal(clipped.weight, weight)


@pytest.fixture
def default_scope():
    """Sets MMEngine's default scope, as a runner does, for one test."""
    before = DefaultScope._instance_dict.copy()
    yield init_default_scope
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.mark.parametrize('prefix', ['', 'mmclipq.'])
def test_builds_as_conv_cfg_of_mmcv(prefix, default_scope):
    default_scope('mmdet')
    cfg = dict(type=f'{prefix}ClipConv', input_range=8, weight_range=0.125, round=True)
    layer = build_conv_layer(cfg, 3, 4, 3, stride=2, bias=False)
    block = ConvModule(3, 4, 3, padding=1, conv_cfg=cfg, norm_cfg=dict(type='BN'))
    for conv in (layer, block.conv):
        assert type(conv) is ClipConv
        assert (conv.input_exponent, conv.weight_exponent, conv.rounded) == (3, -3, True)
    assert layer.stride == (2, 2)
    assert list(block.state_dict())[0] == 'conv.weight'
    assert block.conv.bias is None
    assert block(torch.zeros(2, 3, 5, 5)).shape == (2, 4, 5, 5)


@pytest.mark.parametrize(
    ('option', 'value'),
    [('input_range', 6), ('weight_range', '8'), ('input_range', None), ('weight_range', True)],
)
def test_ranges_that_are_no_power_of_two_are_refused(option, value):
    with pytest.raises(ClipQError, match=f'{option}: found'):
        ClipConv(3, 4, 3, **{option: value})
