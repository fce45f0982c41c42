"""The Lq loss: its value and its gradient 2*lambda*(w - C(w)), exactly, and what it leaves out."""

import math

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from mmclipq.errors import ClipQError
from mmclipq.layers import ClipConv, ClipLinear
from mmclipq.models.losses import LqLoss, lq_loss
from mmclipq.models.losses.lq_loss import lq_target
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.ops.cpu.lq import lq_sum
from mmclipq.prepare import clip_layers, prepare_model

# Range +-1, so steps of 1/128: on the grid, mid-points (down and up to even), below one step, at
# the limit, between the largest code and the limit, and outside on both sides.
WEIGHTS = [0.5, -1.0, 0.5 / 128, 1.5 / 128, -0.5 / 128, 0.25 / 128, 1.0, 1.5, -3.0, 127.5 / 128]
GRID = [0.5, -1.0, 0.0, 2 / 128, 0.0, 0.0, 127 / 128, 127 / 128, -1.0, 127 / 128]
CLIPPED = [*WEIGHTS[:7], 1.0, -1.0, WEIGHTS[9]]
TARGETS = pytest.mark.parametrize(('target', 'constant'), [('grid', GRID), ('clip', CLIPPED)])


def layer_of(values, weight_range=1) -> ClipLinear:
    layer = ClipLinear(len(values), 1, weight_range=weight_range)
    layer.weight.data.copy_(torch.tensor([values]))
    return layer


@TARGETS
@pytest.mark.parametrize('loss_weight', [1.0, 0.25, 0.0])
def test_value_and_gradient(target, constant, loss_weight):
    layer = layer_of(WEIGHTS)
    difference = torch.tensor([WEIGHTS]) - torch.tensor([constant])
    loss = LqLoss(loss_weight, target)([layer])
    loss.backward()
    assert loss.shape == ()
    assert torch.equal(loss, difference.square().sum() * loss_weight)
    assert torch.equal(layer.weight.grad, 2 * loss_weight * difference)
    assert torch.equal(lq_target(layer.weight, 0, target), torch.tensor([constant]))
    assert layer.bias.grad is None


@TARGETS
def test_incoming_gradient_scales_it(target, constant):
    layer = layer_of(WEIGHTS)
    (LqLoss(0.5, target)([layer]) * 8).backward()
    wanted = 8 * (torch.tensor([WEIGHTS]) - torch.tensor([constant]))
    assert torch.equal(layer.weight.grad, wanted)


def test_layers_with_different_ranges_add_up():
    layers = [layer_of([0.75, 0.001], 1), layer_of([0.75, 0.001], 0.5), layer_of([0.0], 'auto')]
    loss = LqLoss(target='clip')(layers)
    loss.backward()
    assert float(loss) == 0.25**2
    assert layers[0].weight.grad.tolist() == [[0, 0]]
    assert layers[1].weight.grad.tolist() == [[0.5, 0]]
    assert layers[2].weight.grad is None


def test_frozen_and_open_layers_add_nothing():
    frozen, still_open = layer_of(WEIGHTS), layer_of(WEIGHTS, 'auto')
    frozen.weight.requires_grad_(False)
    loss = LqLoss()([frozen, still_open])
    assert float(loss) == 0
    assert not loss.requires_grad
    trained = layer_of(WEIGHTS)
    assert torch.equal(LqLoss()([frozen, trained, still_open]), LqLoss()([trained]))


def test_no_layers_give_zero():
    assert float(LqLoss()(iter(()))) == 0


def test_a_layer_used_by_several_levels_counts_once():
    shared = nn.Conv2d(1, 1, 1, bias=False)
    shared.weight.data.fill_(1.5)
    model = nn.ModuleDict({'p3': nn.Sequential(shared), 'p4': nn.Sequential(shared)})
    prepare_model(model, weight_range=1)
    loss = LqLoss(target='clip')(layer for _, layer in clip_layers(model))
    loss.backward()
    assert float(loss) == 0.25
    assert float(shared.weight.grad) == 1.0


@pytest.mark.parametrize(
    ('warmup', 'iteration', 'factor'),
    [(0, 0, 2), (0, 9, 2), (3, 0, 0.5), (3, 1, 1), (3, 2, 1.5), (3, 3, 2), (3, 1000, 2)],
)
def test_warm_up_is_linear_and_ends(warmup, iteration, factor):
    criterion = LqLoss(2.0, 'clip', warmup)
    layer = layer_of([2.0])
    loss = criterion([layer], iteration)
    loss.backward()
    assert criterion.factor(iteration) == factor
    assert float(loss) == factor
    assert float(layer.weight.grad) == 2 * factor


@TARGETS
@pytest.mark.parametrize('count', [1, 255, 2**18, 2**18 + 1, 2**19 + 7])
def test_weights_of_any_size(count, target, constant):
    repeats = -(-count // len(WEIGHTS))
    layer = layer_of((WEIGHTS * repeats)[:count])
    difference = layer.weight.detach() - torch.tensor([(constant * repeats)[:count]])
    loss = LqLoss(target=target)([layer])
    loss.backward()
    # Squares of multiples of 2**-9 add up to more than 24 bits: float64 tells what is right.
    exact = difference.double().square().sum()
    assert abs(float(loss) / float(exact) - 1) < 1e-6 if exact else float(loss) == 0
    assert torch.equal(layer.weight.grad, 2 * difference)


def test_channels_last_weights_get_their_own_gradients():
    layer = ClipConv(4, 6, 3, weight_range=0.0625)
    layer.to(memory_format=torch.channels_last)
    LqLoss(target='clip')([layer]).backward()
    weight = layer.weight.detach()
    assert weight.abs().max() > 0.0625
    assert torch.equal(layer.weight.grad, 2 * (weight - weight.clamp(-0.0625, 0.0625)))


def test_weights_are_not_changed_and_only_they_are_kept():
    layer = layer_of(WEIGHTS)
    addresses = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: addresses.append(t.data_ptr()) or t, lambda t: t
    )
    with hooks:
        loss = LqLoss()([layer])
    loss.backward()
    assert addresses == [layer.weight.data_ptr()]
    assert torch.equal(layer.weight, torch.tensor([WEIGHTS]))


def test_gradient_descent_reaches_the_grid():
    generator = torch.Generator().manual_seed(0)
    layer = ClipConv(3, 8, 3, weight_range=0.5)
    layer.weight.data.copy_(torch.rand(layer.weight.shape, generator=generator) * 1.2 - 0.6)
    target = lq_target(layer.weight.detach(), -1, 'grid')
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    LqLoss()([layer]).backward()
    optimizer.step()
    assert torch.equal(layer.weight, target)


def test_builds_from_a_config():
    loss = MODELS.build(dict(type='LqLoss', loss_weight=0.1, target='clip', warmup_iters=5))
    assert type(loss) is LqLoss
    assert (loss.loss_weight, loss.target, loss.warmup_iters) == (0.1, 'clip', 5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target': 'nearest'}, "target 'nearest', wanted one of .*grid.*clip"),
        ({'loss_weight': -1}, 'loss_weight=-1'),
        ({'warmup_iters': -5}, 'warmup_iters=-5'),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ClipQError, match=f'LqLoss: found .*{message}'):
        LqLoss(**options)


@TARGETS
@pytest.mark.parametrize('exponent', [-6, 0, 3])
@pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')
def test_compiled_passes_are_those_of_pytorch(target, constant, exponent, monkeypatch):
    """The same gradient; the sum as close to the exact one as its squares in float32 allow."""
    generator = torch.Generator().manual_seed(exponent)
    weight = torch.randn(70001, generator=generator) * 2.0 ** (exponent - 1)
    weight[:10] = torch.tensor(WEIGHTS) * 2.0**exponent
    weight[10:13] = torch.tensor([1e30, float('-inf'), 0.0])
    both = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(lq_loss, '_compiled', lambda weight: False)
        given = weight.clone().requires_grad_()
        (lq_loss._SquaredDistance.apply(given, exponent, target) * 0.3).backward()
        finite = weight[13:].clone()
        loss = lq_loss._SquaredDistance.apply(finite, exponent, target)
        both.append((given.grad, float(loss)))
    assert torch.equal(both[0][0], both[1][0])
    exact = (finite - lq_target(finite, exponent, target)).double().square().sum()
    assert abs(both[0][1] / float(exact) - 1) < 2e-7
    assert abs(both[1][1] / float(exact) - 1) < 2e-6


@pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')
@pytest.mark.parametrize('count', [1, 15, 16, 17, 1007, 1008, 1009, 65536, 65537])
def test_no_weight_is_left_out_and_threads_do_not_matter(count):
    weight = torch.full((count,), 0.5 / 128)
    weight[-1] = float('nan')
    sums = [lq_sum(weight, 0, True)]
    weight[-1] = 0.25 / 128
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sums.append(lq_sum(weight, 0, True) * 128**2)
    torch.set_num_threads(before)
    assert math.isnan(sums[0])
    assert sums[1] == sums[2] == (count - 1) / 4 + 1 / 16
