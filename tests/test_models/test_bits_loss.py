"""Bits of codes as a loss: what it counts, and that its gradient is the entropy's own."""

import math

import pytest
import torch

from mmclipq.errors import ClipQError
from mmclipq.layers import ClipConv, ClipLinear
from mmclipq.models.losses import BitsLoss
from mmclipq.models.losses.bits_loss import _PRIOR, CLASSES


def layer_of(weight) -> ClipLinear:
    layer = ClipLinear(weight.shape[1], weight.shape[0], weight_range='auto')
    layer.weight.data.copy_(weight)
    return layer


def drawn(rows=20, columns=500, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def entropy(weights, fineness):
    """Bits of all weights, written out in float64 and differentiable, with the prior's share."""
    tables = torch.full((CLASSES, 65), _PRIOR, dtype=torch.float64)
    signs = 0.0
    for weight in weights:
        rms = weight.square().mean(1, keepdim=True).sqrt()
        scaled = weight.abs() / rms * fineness
        kinds = (scaled.mean(1) / fineness * CLASSES).long()
        lower = scaled.detach().floor().long()
        part = scaled - lower
        for row, kind in enumerate(kinds.tolist()):
            near = torch.nn.functional.one_hot(lower[row], 65) * (1 - part[row])[:, None]
            far = torch.nn.functional.one_hot(lower[row] + 1, 65) * part[row][:, None]
            tables = tables.index_add(0, torch.tensor([kind]), (near + far).sum(0)[None])
        signs = signs + torch.where(lower == 0, part, 1.0).sum()
    shares = tables / tables.sum(1, keepdim=True)
    return (tables * -shares.log2()).sum() + signs, -(shares.log2() * _PRIOR).sum()


def test_bits_and_gradient_are_those_of_the_entropy():
    layers = [layer_of(drawn()), layer_of(drawn(8, 90, 1))]
    bits = BitsLoss(fineness=1.5).bits(layers)
    weights = [layer.weight.detach().double().requires_grad_() for layer in layers]
    total, prior = entropy(weights, 1.5)
    count = sum(weight.numel() for weight in weights)
    assert float(bits) == pytest.approx(float(total - prior) / count, rel=1e-4)
    bits.backward()
    total.backward()
    for layer, weight in zip(layers, weights, strict=True):
        wanted = (weight.grad / count).float()
        torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-3, atol=2e-6)


def test_a_normal_row_has_about_the_bits_of_the_normal_distribution():
    layer = layer_of(drawn(30, 4000))
    wanted = math.log2(math.sqrt(2 * math.pi * math.e) * 2)
    assert float(BitsLoss(fineness=2).bits([layer])) == pytest.approx(wanted, abs=0.1)


def test_the_size_of_a_row_counts_nothing():
    weight = drawn()
    one, other = layer_of(weight), layer_of(weight * torch.logspace(-3, 3, 20)[:, None])
    losses = [BitsLoss().bits([layer]) for layer in (one, other)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4)
    losses[0].backward()
    along = (one.weight.grad * one.weight).sum(1)
    assert along.abs().max() < 1e-6


def test_descent_saves_bits():
    layer = layer_of(drawn())
    optimizer = torch.optim.Adam([layer.weight], lr=1e-3)
    before, zeros = float(BitsLoss().bits([layer])), (layer.weight.abs() < 0.005).float().mean()
    for _ in range(40):
        optimizer.zero_grad()
        BitsLoss().bits([layer]).backward()
        optimizer.step()
    assert float(BitsLoss().bits([layer])) < before - 0.5
    assert (layer.weight.abs() < 0.005).float().mean() > zeros + 0.1


def test_zeros_stay_and_pull_nothing():
    weight = drawn(4, 60)
    weight[:, ::2] = 0
    layer = layer_of(weight)
    BitsLoss().bits([layer]).backward()
    assert not layer.weight.grad[:, ::2].any()
    assert layer.weight.grad[:, 1::2].any()
    whole = layer_of(torch.zeros(3, 20))
    bits = BitsLoss().bits([whole])
    bits.backward()
    assert float(bits) < 0.3
    assert not whole.weight.grad.any()


def test_what_a_loss_is_made_of():
    layer = layer_of(drawn())
    loss = BitsLoss(loss_weight=3.0, warmup_iters=3)
    for iteration, share in ((0, 0.25), (2, 0.75), (3, 1), (9, 1)):
        found, bits = loss([layer], iteration, torch.tensor(7.0))
        assert float(found) == pytest.approx(21 * share * float(bits))
        assert not bits.requires_grad


def test_frozen_layers_add_nothing():
    frozen, trained = layer_of(drawn()), ClipConv(3, 4, 3)
    frozen.weight.requires_grad_(False)
    assert float(BitsLoss().bits([frozen])) == 0
    assert torch.equal(BitsLoss().bits([frozen, trained]), BitsLoss().bits([trained]))
    BitsLoss().bits([trained]).backward()
    assert trained.weight.grad.shape == (4, 3, 3, 3)


@pytest.mark.parametrize('options', [{'loss_weight': -1}, {'fineness': 0}, {'warmup_iters': -1}])
def test_numbers_that_make_no_sense(options):
    with pytest.raises(ClipQError, match='BitsLoss: found'):
        BitsLoss(**options)
