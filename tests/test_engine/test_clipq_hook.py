"""ClipQHook in real training runs: what is prepared when, the Lq loss, ranges that travel."""

import math

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper

from mmclipq import fixed_point as fp
from mmclipq.apis.clipq_config import DEFAULTS, clipq_options
from mmclipq.engine import ClipQHook
from mmclipq.errors import ClipQError
from mmclipq.layers import ClipConv
from mmclipq.prepare import clip_layers, ranges_state

FIRST = 'backbone.conv1.conv'


class Recorder(Hook):
    """Keeps what a function gives before every training iteration."""

    def __init__(self, function):
        self.function = function
        self.results = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.results.append(self.function(runner.model))


def before_iterations(runner, function) -> list:
    hook = Recorder(function)
    runner.register_hook(hook)
    return hook.results


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def lq_losses(runner) -> list[float]:
    return runner.message_hub.get_scalar('train/loss_lq').data[0].tolist()


def open_inputs(model) -> int:
    return sum(exponent is None for exponent, _ in ranges_state(model).values())


def squared_distance(model) -> torch.Tensor:
    layers = [layer for _, layer in clip_layers(model)]
    parts = [
        (layer.weight - fp.quantize(layer.weight, layer.weight_exponent)).square().sum()
        for layer in layers
    ]
    return torch.stack(parts).sum().detach()


def test_ema_model_is_prepared_too(make_runner, hook_of):
    hooks = [dict(type='EMAHook'), dict(type='mmclipq.ClipQHook')]
    runner = make_runner(custom_hooks=hooks)
    runner.train()
    names = [name for name, _ in clip_layers(runner.model)]
    copied = hook_of(runner, EMAHook).ema_model.module
    assert len(names) == 75
    assert [name for name, _ in clip_layers(copied)] == names
    assert copied.get_submodule(FIRST) is not runner.model.get_submodule(FIRST)


def test_optimizer_trains_the_parameters_of_the_clipped_model(make_runner):
    runner = make_runner()
    started = before_iterations(runner, weights)
    identities = {name: id(p) for name, p in runner.model.named_parameters()}
    keys = list(runner.model.state_dict())
    runner.train()
    assert isinstance(runner.model.get_submodule(FIRST), ClipConv)
    after = dict(runner.model.named_parameters())
    assert {name: id(p) for name, p in after.items()} == identities
    held = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params']}
    assert held == set(identities.values())
    assert list(runner.model.state_dict()) == keys
    same = [name for name in after if torch.equal(after[name], started[0][name])]
    # The network runs its last convolution but does not use the result.
    assert same == ['backbone.conv2.bn.weight', 'backbone.conv2.bn.bias']


def test_lq_is_logged_and_added_to_the_loss(make_runner):
    runner = make_runner(**{'clipq.lq.loss_weight': 0.25})
    expected = before_iterations(runner, squared_distance)
    runner.train()
    logged = torch.tensor(lq_losses(runner))
    # The compiled pass adds in another order and in float64.
    torch.testing.assert_close(logged, 0.25 * torch.stack(expected), rtol=1e-6, atol=0)
    scalars = {
        name.removeprefix('train/'): buffer.data[0]
        for name, buffer in runner.message_hub.log_scalars.items()
    }
    parts = sum(v for name, v in scalars.items() if name.startswith('loss_'))
    assert scalars['loss'] == pytest.approx(parts, rel=1e-6)


def test_lq_gradient_reaches_every_weight(make_runner):
    runner = make_runner()
    runner.train()
    model = runner.model
    batch = model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    losses = model(**batch, mode='loss')
    model.zero_grad()
    losses['loss_lq'].backward()
    for name, layer in clip_layers(model):
        weight = layer.weight.detach()
        distance = weight - fp.quantize(weight, layer.weight_exponent)
        assert torch.equal(layer.weight.grad, distance * (2 * torch.tensor(0.1))), name
    assert all(key in losses for key in ('loss_cls', 'loss_conf', 'loss_xy', 'loss_wh'))


def test_lq_none_adds_nothing(make_runner):
    runner = make_runner(**{'clipq.lq': None})
    runner.train()
    assert 'train/loss_cls' in runner.message_hub.log_scalars
    assert 'train/loss_lq' not in runner.message_hub.log_scalars
    assert isinstance(runner.model.get_submodule(FIRST), ClipConv)


def test_bfloat16_autocast_keeps_float32_weights(make_runner, monkeypatch):
    # MMEngine allows the wrapper with an accelerator only; autocast itself works without one.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    runner = make_runner(
        **{'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
    )
    before = runner.model.get_submodule(FIRST).weight.detach().clone()
    seen = set()
    layer = runner.model.get_submodule(FIRST)
    layer.register_forward_hook(
        lambda module, args, output: seen.add((module.training, output.dtype))
    )
    runner.train()
    assert (True, torch.bfloat16) in seen
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    assert not torch.equal(layer.weight, before)
    assert layer.input_exponent == 0
    assert len(lq_losses(runner)) == 3


def test_gradients_accumulate_over_iterations(make_runner):
    runner = make_runner(**{'optim_wrapper.accumulative_counts': 3})
    started = before_iterations(runner, weights)
    runner.train()
    key = f'{FIRST}.weight'
    seen = [*(step[key] for step in started), runner.model.state_dict()[key]]
    assert [torch.equal(weight, seen[0]) for weight in seen] == [True, True, True, False]
    losses = lq_losses(runner)
    assert losses[0] == losses[1] == losses[2] > 0


@pytest.mark.parametrize(('observe_iters', 'found_after'), [(1, 1), (2, 2), (50, 3)])
def test_input_ranges_are_found_after_observe_iters(
    make_runner, log_of, observe_iters, found_after
):
    runner = make_runner(**{'clipq.observe_iters': observe_iters, 'train_cfg.max_epochs': 2})
    inputs = []
    open_ranges = before_iterations(runner, open_inputs)
    layer = runner.model.get_submodule('bbox_head.convs_pred.0')
    layer.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].detach().abs()) if module.training else None
    )
    runner.train()
    assert open_ranges == [75] * found_after + [0] * (6 - found_after)
    assert log_of(runner).count('input ranges found') == 1
    values = torch.cat([x.flatten() for x in inputs[:found_after]])
    wanted = values.numel() * 0.9999
    expected = next(e for e in range(-40, 41) if int((values <= math.ldexp(1, e)).sum()) >= wanted)
    assert layer.input_exponent == expected
    assert layer.observer is None


def test_ranges_travel_in_the_checkpoint_and_survive_resuming(make_runner, log_of):
    first = make_runner()
    first.train()
    path = f'{first.work_dir}/epoch_1.pth'
    checkpoint = torch.load(path, weights_only=True)
    ranges = ranges_state(first.model)
    assert checkpoint['clipq'] == ranges
    assert all(None not in pair for pair in ranges.values())
    # No data would give this range: only the checkpoint can.
    checkpoint['clipq'][FIRST] = (-9, 11)
    torch.save(checkpoint, path)
    second = make_runner(**{'train_cfg.max_epochs': 2, 'load_from': path, 'resume': True})
    observed = before_iterations(second, lambda m: [x.observer for _, x in clip_layers(m)])
    second.train()
    assert observed == [[None] * 75] * 3
    assert ranges_state(second.model) == {**ranges, FIRST: (-9, 11)}
    assert 'input ranges found' not in log_of(second)


def test_resumed_training_equals_an_uninterrupted_one(make_runner):
    options = {'param_scheduler': None, 'train_dataloader.sampler.shuffle': False}
    whole = make_runner(**options, **{'train_cfg.max_epochs': 2})
    whole.train()
    half = make_runner(**options)
    half.train()
    path = f'{half.work_dir}/epoch_1.pth'
    rest = make_runner(**options, **{'train_cfg.max_epochs': 2, 'load_from': path, 'resume': True})
    rest.train()
    assert ranges_state(rest.model) == ranges_state(whole.model)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


def test_stock_checkpoint_loads_and_gives_the_weight_ranges(make_runner, tmp_path):
    donor = make_runner().model
    state = {
        key: value * 64 if key == f'{FIRST}.weight' else value
        for key, value in donor.state_dict().items()
    }
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'stock.pth')
    runner = make_runner(load_from=str(tmp_path / 'stock.pth'))
    started = before_iterations(runner, weights)
    runner.train()
    assert all(torch.equal(started[0][key], value) for key, value in state.items())
    found = runner.model.get_submodule(FIRST).weight_exponent
    assert found == fp.holding_exponent(float(state[f'{FIRST}.weight'].abs().max()))
    assert found != fp.holding_exponent(float(donor.state_dict()[f'{FIRST}.weight'].abs().max()))


def test_checkpoint_of_other_rules_is_refused(make_runner):
    rules = [dict(pattern='bbox_head.convs_pred.1', skip=True)]
    other = make_runner(**{'clipq.rules': rules})
    other.train()
    runner = make_runner(load_from=f'{other.work_dir}/epoch_1.pth')
    with pytest.raises(ClipQError, match=r'bbox_head\.convs_pred\.1.*same clipq rules'):
        runner.train()


def test_layers_that_stay_in_float_are_logged(make_runner, log_of):
    rules = [dict(pattern='bbox_head.convs_pred.*', skip=True)]
    runner = make_runner(**{'clipq.rules': rules})
    runner.train()
    log = log_of(runner)
    assert 'mmclipq: 72 layers clipped, 3 left as they are' in log
    for level in range(3):
        assert f'  bbox_head.convs_pred.{level}: skipped by a rule' in log


def test_layers_clipped_by_the_config_do_not_keep_the_others_from_it(make_runner):
    conv = dict(type='mmclipq.ClipConv', input_range=4.0, weight_range=0.5)
    runner = make_runner(**{'model.neck.conv_cfg': conv})
    runner.train()
    ranges = ranges_state(runner.model)
    assert len(ranges) == 75
    assert all(r == (2, -1) for name, r in ranges.items() if name.startswith('neck.'))
    assert any(r != (2, -1) for name, r in ranges.items() if name.startswith('backbone.'))


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('clipq.input_rnage', 8.0, 'input_rnage'),
        ('clipq.input_range', 6.0, 'input_range: found 6, wanted a power of two'),
        ('clipq.rules', [dict(pattern='nekc.*', skip=True)], r"no layer named like 'nekc\.\*'"),
        ('clipq.first_layer', dict(skp=True), r"first_layer: found \['skp'\]"),
        ('clipq.lq.target', 'gird', "target 'gird'"),
    ],
)
def test_wrong_options_are_named(make_runner, option, value, message):
    with pytest.raises(ClipQError, match=message):
        make_runner(**{option: value}).train()


def test_options_of_the_hook_override_the_section():
    with pytest.raises(ClipQError, match='input_rnage'):
        ClipQHook(input_rnage=8.0)
    assert clipq_options({'round': True, 'percentile': 99.0}, percentile=100.0) == {
        **DEFAULTS,
        'round': True,
        'percentile': 100.0,
    }
    assert clipq_options(None) == DEFAULTS


def test_options_of_the_hook_reach_the_config_that_the_export_reads(make_runner):
    rules = [dict(pattern='backbone.*', skip=True)]
    runner = make_runner(custom_hooks=[dict(type='mmclipq.ClipQHook', rules=rules)])
    runner.call_hook('before_run')
    assert runner.cfg.clipq.rules == rules
    assert runner.cfg.clipq.percentile == 99.99


def test_ranges_of_the_checkpoint_win_and_say_so(make_runner, log_of):
    runner = make_runner(custom_hooks=[dict(type='mmclipq.ClipQHook', input_range=8.0)])
    runner.call_hook('before_run')
    model = runner.model
    stored = {name: (1, weight) for name, (_, weight) in ranges_state(model).items()}
    runner.call_hook('after_load_checkpoint', checkpoint={'clipq': stored})
    assert ranges_state(model) == stored
    assert f'replace those of the config in {len(stored)} layers' in log_of(runner)
