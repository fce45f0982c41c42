"""What clipped layers share: swapping in place, ranges as words, observation, the limits."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from mmclipq import fixed_point as fp
from mmclipq.calibration.observer import OctaveHistogram
from mmclipq.errors import ClipQError
from mmclipq.layers import ClipConv, ClipLinear
from mmclipq.layers.clip_mixin import limit, limit_backward, needed

LAYERS = pytest.mark.parametrize(
    ('stock_class', 'clip_class', 'args', 'shape'),
    [
        (nn.Conv2d, ClipConv, (3, 4, 3), (2, 3, 5, 5)),
        (nn.Linear, ClipLinear, (3, 4), (2, 3)),
    ],
    ids=['conv', 'linear'],
)


@LAYERS
def test_adopt_and_release_keep_the_object(stock_class, clip_class, args, shape):
    layer = stock_class(*args)
    attributes, parameters = dict(layer.__dict__), [id(p) for p in layer.parameters()]
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    before = layer(torch.ones(shape) * 9)
    clip_class.adopt(layer, input_range=8, weight_range=0.125, round=True)
    assert type(layer) is clip_class
    assert [id(p) for p in layer.parameters()] == parameters
    assert list(layer.state_dict()) == ['weight', 'bias']
    assert not torch.equal(layer(torch.ones(shape) * 9), before)
    layer.release()
    assert type(layer) is stock_class
    assert layer.__dict__.keys() == attributes.keys()
    assert torch.equal(layer(torch.ones(shape) * 9), before)
    assert len(calls) == 3


@LAYERS
def test_a_layer_built_clipped_cannot_be_released(stock_class, clip_class, args, shape):
    layer = clip_class(*args)
    with pytest.raises(ClipQError, match=f'{clip_class.__name__} was built from a config'):
        layer.release()
    assert type(layer) is clip_class


@LAYERS
@pytest.mark.parametrize('copier', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_ranges_and_stock_class(copier, stock_class, clip_class, args, shape):
    layer = stock_class(*args)
    clip_class.adopt(layer, input_range=8, weight_range='auto', round=True)
    twin = copier(layer)
    assert (twin.input_exponent, twin.weight_exponent, twin.rounded) == (3, None, True)
    twin.release()
    assert type(twin) is stock_class
    assert type(layer) is clip_class


@LAYERS
def test_repr_shows_ranges(stock_class, clip_class, args, shape):
    assert repr(clip_class(*args)).endswith(', input=auto, weight=auto)')
    layer = clip_class(*args, input_range=8, weight_range=0.125, round=True)
    own = repr(stock_class(*args)).removesuffix(')').removeprefix(stock_class.__name__)
    shown = f'{clip_class.__name__}{own}, input=±8, weight=±0.125, round=True)'
    assert repr(layer) == shown


@LAYERS
def test_the_observer_sees_the_unclipped_input(stock_class, clip_class, args, shape):
    layer = clip_class(*args, input_range=2, weight_range=1)
    layer.observer = OctaveHistogram()
    x = torch.full(shape, 7.0, requires_grad=True)
    layer(x)
    layer(x)
    assert layer.observer.count == 2 * x.numel()
    assert layer.observer.percentile_exponent(100) == 3


@pytest.mark.parametrize(
    ('value', 'exponent'), [(0.25, -2), (0.2500001, -1), (0.2, -2), (1e-20, -40), (1e9, 30)]
)
def test_open_weight_ranges_hold_the_weights(value, exponent):
    layer = ClipLinear(3, 4)
    layer.weight.data.fill_(value / 3)[1, 2] = -value
    layer.find_weight_range()
    assert layer.weight_exponent == exponent
    assert torch.equal(limit(layer.weight, exponent, False), layer.weight)


def test_a_given_weight_range_stands():
    layer = ClipLinear(3, 4, weight_range=0.125)
    layer.weight.data.fill_(math.nan)
    layer.find_weight_range()
    assert layer.weight_exponent == -3


def test_zero_weights_stay_open_and_learn():
    layer = ClipLinear(3, 1, bias=False)
    nn.init.zeros_(layer.weight)
    layer.find_weight_range()
    assert layer.weight_exponent is None
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (layer(torch.eye(3)) - 1).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer(torch.eye(3)), torch.ones(3, 1))


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad):
    layer = ClipConv(3, 4, 1)
    layer.weight.data[0, 0] = bad
    with pytest.raises(ClipQError, match='neck.conv.weight: found'):
        layer.find_weight_range('neck.conv.weight')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('exponent', [*range(-40, 41, 8), -3, 3])
def test_gradient_is_kept_up_to_the_limit_and_not_a_unit_further(exponent, dtype):
    end = torch.tensor(2.0**exponent, dtype=dtype)
    beyond, before = torch.nextafter(end, end * 2), torch.nextafter(end, end * 0)
    x = torch.stack([end, beyond, before, -end, -beyond, -before, end * 0, end * 3])
    grad = torch.full_like(x, 5)
    assert limit_backward(grad, x, exponent).tolist() == [5, 0, 5, 5, 0, 5, 5, 0]
    assert limit_backward(grad, x, None) is grad
    leaf = x.clone().requires_grad_()
    fp.clip(leaf, exponent).backward(grad)
    assert torch.equal(limit_backward(grad, x, exponent), leaf.grad)


@pytest.mark.parametrize(
    ('values', 'rounded', 'exponent'),
    [
        ([2.0, -2.0, 0.0], False, None),
        ([0.0, math.nextafter(2.0, 3.0) + 1e-6], False, 1),
        ([-2.000001, 0.0], False, 1),
        ([2.0, math.nan], False, 1),
        ([0.3], True, 1),
        ([], False, 1),
    ],
)
def test_clipping_is_left_out_only_where_it_changes_nothing(values, rounded, exponent):
    x = torch.tensor(values)
    assert needed(x, 1, rounded) == exponent
    assert needed(x, None, rounded) is None
