"""Int8ExportHook: which files it writes when, from which weights, and what a failure costs."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.engine import Int8ExportHook
from mmclipq.errors import ClipQError
from mmclipq.graph import artifact
from mmclipq.graph.artifact import load_artifact
from mmclipq.prepare import clip_layers

HOOKS = [dict(type='mmclipq.ClipQHook'), dict(type='mmclipq.Int8ExportHook')]
BEST = {
    'default_hooks.checkpoint.save_best': 'test/score',
    'default_hooks.checkpoint.rule': 'greater',
    'default_hooks.checkpoint.interval': 9,
    'default_hooks.checkpoint.save_last': False,
    'train_cfg.val_interval': 1,
}


def written(runner) -> list[str]:
    """Names of the exported and of any unfinished files."""
    names = (path.name for path in Path(runner.work_dir).iterdir())
    return sorted(name for name in names if name.endswith(('.clipq', '.part')))


def test_last_checkpoint_is_exported_with_a_summary(make_runner, log_of):
    skip = [dict(pattern='bbox_head.convs_pred.0', skip=True)]
    runner = make_runner(custom_hooks=HOOKS, **{'clipq.rules': skip})
    runner.train()
    assert written(runner) == ['epoch_1_int8.clipq']
    path = Path(runner.work_dir) / 'epoch_1_int8.clipq'
    log = log_of(runner)
    pattern = (
        rf'{re.escape(str(path))}: ([\d.]+) MiB, ([\d.]+)% of ([\d.]+) MiB float32, '
        r'(\d+) layers int8, (\d+) steps left in float'
    )
    size, percent, float_size, layers, left = re.search(pattern, log).groups()
    parameters = sum(p.numel() * 4 for p in runner.model.parameters())
    assert size == f'{path.stat().st_size / 2**20:.2f}'
    assert float_size == f'{parameters / 2**20:.2f}'
    assert percent == f'{path.stat().st_size / parameters:.2%}'.rstrip('%')
    products = {node.weight for node in load_artifact(path).graphs[0].products()}
    assert int(layers) == len(products)
    # The network does not use the result of its last convolution.
    unused = {'backbone.conv2.conv'}
    names = {weight.removesuffix('.weight') for weight in products}
    assert names | unused == {name for name, _ in clip_layers(runner.model)}
    assert int(left) >= 1
    assert re.search(r'  float: bbox_head.convs_pred.0: Conv2d is skipped', log)


def test_every_new_best_checkpoint_is_exported(make_runner, log_of):
    runner = make_runner(
        custom_hooks=HOOKS,
        **BEST,
        **{'train_cfg.max_epochs': 3, 'val_evaluator.values': [0.2, 0.1, 0.3]},
    )
    runner.train()
    # The file of the first epoch went with its checkpoint, which CheckpointHook deleted.
    assert written(runner) == ['best_test_score_epoch_3_int8.clipq']
    log = log_of(runner)
    assert [epoch for epoch in (1, 2, 3) if f'epoch_{epoch}_int8.clipq: ' in log] == [1, 3]


def test_best_false_exports_the_last_only(make_runner):
    hooks = [HOOKS[0], dict(type='mmclipq.Int8ExportHook', best=False)]
    options = {**BEST, 'default_hooks.checkpoint.save_last': True}
    runner = make_runner(custom_hooks=hooks, **options)
    runner.train()
    assert written(runner) == ['epoch_1_int8.clipq']


def test_size_and_packing_are_those_of_the_hook(make_runner, monkeypatch):
    asked = []

    def export(cfg, checkpoint, out, compress, **options):
        asked.append((compress, options['size'], options['calib_images']))
        return 'written'

    monkeypatch.setattr('mmclipq.engine.hooks.int8_export_hook.export_checkpoint', export)
    options = dict(size=0.12, compress='best', calib_images=3)
    make_runner(custom_hooks=[HOOKS[0], {**HOOKS[1], **options}]).train()
    assert asked == [('best', 0.12, 3)]


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'size': 0}, 'Int8ExportHook: found size=0'), ({'compress': 'most'}, "found 'most'")],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ClipQError, match=message):
        Int8ExportHook(**options)


def test_without_a_checkpoint_it_says_so(make_runner, log_of):
    options = {'default_hooks.checkpoint.interval': 9, 'default_hooks.checkpoint.save_last': False}
    runner = make_runner(custom_hooks=HOOKS, **options)
    runner.train()
    assert written(runner) == []
    assert 'mmclipq: found no checkpoint of this training' in log_of(runner)


def test_averaged_weights_of_the_checkpoint_are_exported(make_runner):
    ema = dict(type='EMAHook', momentum=0.5)
    runner = make_runner(custom_hooks=[ema, *HOOKS], **{'optim_wrapper.optimizer.lr': 0.01})
    runner.train()
    folder = Path(runner.work_dir)
    saved = torch.load(folder / 'epoch_1.pth', weights_only=True)['state_dict']
    exported = load_artifact(folder / 'epoch_1_int8.clipq').graphs[0]
    raw = runner.model.state_dict()
    other = 0
    for node in exported.products():
        key = node.weight
        exponents = exported.constants[node.exponents]
        codes = exported.constants[key]
        assert torch.equal(codes, fp.encode(saved[key], exponents, axis=0)), key
        other += not torch.equal(codes, fp.encode(raw[key], exponents, axis=0))
    assert other > 70


def test_exporting_does_not_change_the_training(make_runner):
    options = {'train_cfg.max_epochs': 2, **BEST, 'val_evaluator.values': [0.1, 0.2]}
    weights, generators = [], []
    for hooks in (HOOKS[:1], HOOKS):
        runner = make_runner(custom_hooks=hooks, **options)
        runner.train()
        weights.append(runner.model.state_dict())
        generators.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1:]))
    assert written(runner) == ['best_test_score_epoch_2_int8.clipq']
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
    (torch_state, *states), (other_torch_state, *other_states) = generators
    assert torch.equal(torch_state, other_torch_state)
    assert str(states) == str(other_states)


def full_disk(*args):
    raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('failure', ['option', 'disk'])
def test_failing_export_does_not_stop_the_training(make_runner, log_of, monkeypatch, failure):
    options = {'train_cfg.max_epochs': 2, **BEST, 'val_evaluator.values': [0.1, 0.2]}
    if failure == 'option':
        options['clipq.int8.calib_images'] = 0
        reason = '--calib-images: found 0'
    else:
        monkeypatch.setattr(artifact.os, 'fsync', full_disk)
        reason = 'No space left on device'
    runner = make_runner(custom_hooks=HOOKS, **options)
    runner.train()
    assert runner.epoch == 2
    assert (Path(runner.work_dir) / 'best_test_score_epoch_2.pth').is_file()
    assert written(runner) == []
    log = log_of(runner)
    assert log.count('mmclipq: no int8 file for') == 2
    assert reason in log
