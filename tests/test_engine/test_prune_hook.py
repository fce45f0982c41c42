"""Weights that are set to zero while a detector trains, and bits that its log counts."""

import pytest
import torch

from mmclipq.engine.hooks.prune_hook import MagnitudePruningHook, least_kept
from mmclipq.errors import ClipQError
from mmclipq.models.losses import BitsLoss
from mmclipq.prepare import clip_layers

HOOKS = [dict(type='mmclipq.ClipQHook'), dict(type='mmclipq.MagnitudePruningHook', interval=1)]


def test_the_least_go_beside_their_channel():
    weight = torch.tensor([[1.0, -2, 3, 4], [100, 300, -400, 250], [0, 0, 0, 5]])
    kept = least_kept(weight, 0.5)
    assert kept.tolist() == [
        [False, False, True, True],
        [False, True, True, True],
        [False] * 3 + [True],
    ]
    assert least_kept(weight, 0).all()
    assert least_kept(torch.zeros(2, 2), 0.5).sum() == 2


def test_the_share_grows_and_ends():
    hook = MagnitudePruningHook(share=0.8, until=0.5)
    shares = [hook.share_at(done / 20) for done in range(21)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[10:] == [0.8] * 11


@pytest.mark.parametrize('options', [{'share': 1}, {'until': 0}, {'interval': 0}])
def test_numbers_that_make_no_sense(options):
    with pytest.raises(ClipQError, match='MagnitudePruningHook: found'):
        MagnitudePruningHook(**options)


def zeros(layer) -> float:
    return float((layer.weight == 0).float().mean())


def test_zeros_stay_to_the_end_and_in_a_training_that_goes_on(make_runner):
    runner = make_runner(**{'custom_hooks': HOOKS, 'train_cfg.max_epochs': 2})
    runner.train()
    layers = dict(clip_layers(runner.model))
    pruned = {
        name
        for name, layer in layers.items()
        if layer.weight.numel() >= 1024 and layer.weight[0].numel() >= 32
    }
    assert 20 < len(pruned) < len(layers)
    for name, layer in layers.items():
        wanted = round(0.5 * layer.weight.numel()) / layer.weight.numel() if name in pruned else 0
        assert zeros(layer) == pytest.approx(wanted, abs=1e-6), name
    resumed = make_runner(
        **{
            'custom_hooks': HOOKS,
            'train_cfg.max_epochs': 3,
            'resume': True,
            'load_from': f'{runner.work_dir}/epoch_2.pth',
        }
    )
    resumed.train()
    assert resumed.iter == 9
    for name, layer in clip_layers(resumed.model):
        before = layers[name].weight == 0
        assert torch.equal(layer.weight == 0, before), name
        if name in pruned:
            assert not torch.equal(layer.weight, layers[name].weight)


def test_bits_are_logged_and_added_to_the_loss(make_runner):
    bits = dict(_delete_=True, loss_weight=0.5)
    runner = make_runner(**{'clipq.bits': bits, 'clipq.lq': None})
    runner.train()
    scalars = {
        name.removeprefix('train/'): buffer.data[0]
        for name, buffer in runner.message_hub.log_scalars.items()
    }
    own = sum(scalars[name] for name in ('loss_cls', 'loss_conf', 'loss_xy', 'loss_wh'))
    assert scalars['loss_bits'] == pytest.approx(0.5 * own * scalars['bits_per_weight'], rel=1e-5)
    assert scalars['loss'] == pytest.approx(own + scalars['loss_bits'], rel=1e-5)
    assert 'loss_lq' not in scalars
    found = BitsLoss().bits(layer for _, layer in clip_layers(runner.model))
    assert 2 < float(found) < 4
