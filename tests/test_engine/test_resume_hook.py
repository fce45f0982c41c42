"""A training that goes on equals one that was not disturbed, and its checkpoints are whole."""

import errno
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from _contents import checkpoint, digest_of
from _seeds import one_stage
from mmengine.config import Config
from mmengine.runner import Runner

from mmclipq.engine.hooks import resumable_training, resume_hook, whole_checkpoint_hook
from mmclipq.engine.hooks.resume_hook import random_states, set_random_states
from mmclipq.engine.hooks.whole_checkpoint_hook import BACKEND, OUTDATED, WholeCheckpointHook
from mmclipq.errors import ClipQError
from mmclipq.graph import writing

MODEL = one_stage(classes=10)
EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA')
HOOKS = [EMA, dict(type='mmclipq.ClipQHook'), dict(type='mmclipq.Int8ExportHook'),
         dict(type='mmclipq.ResumeHook')]  # fmt: skip
OPTIONS = {
    'custom_hooks': HOOKS,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.save_best': 'test/score',
    'default_hooks.checkpoint.rule': 'greater',
    'default_hooks.checkpoint.max_keep_ckpts': 1,
    'randomness.seed': None,
    'clipq.lq.warmup_iters': 4,
}


@pytest.fixture
def train(small_config):
    """Trains in a folder; images are flipped at random and their order is drawn."""

    def run(folder: Path, epochs: int, resume: bool = False, scores=(0.1, 0.3, 0.2), **more):
        cfg = small_config(**{**OPTIONS, 'train_cfg.max_epochs': epochs, **more})
        cfg.train_dataloader.dataset.pipeline.insert(3, dict(type='RandomFlip', prob=0.5))
        cfg.val_evaluator['values'] = list(scores)
        cfg.model, cfg.visualizer['name'] = MODEL, cfg.experiment_name
        cfg.work_dir, cfg.resume = str(folder), resume
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    return run


def results(folder: Path) -> dict[str, str]:
    """Digests of checkpoints and int8 files."""
    return {
        path.name: digest_of(checkpoint(path)) if path.suffix == '.pth' else digest_of(
            path.read_bytes()
        )
        for path in folder.iterdir()
        if path.suffix in ('.pth', '.clipq')
    }  # fmt: skip


def stopped_at(folder: Path, epoch: int, train, monkeypatch) -> None:
    """Train until validation behind an epoch is over and everything is written."""
    with monkeypatch.context() as patch:
        loop = resume_hook.ResumeHook.before_train_epoch

        def stop(self, runner):
            if runner.epoch == epoch:
                raise SystemExit
            loop(self, runner)

        patch.setattr(resume_hook.ResumeHook, 'before_train_epoch', stop)
        with pytest.raises(SystemExit):
            train(folder, 3)


def test_a_resumed_training_equals_an_undisturbed_one(train, tmp_path, monkeypatch):
    """Flips, order, optimizer, averages, ranges, weight of the Lq loss, best one, int8 files."""
    stopped_at(tmp_path / 'rest', 1, train, monkeypatch)
    seed = checkpoint(tmp_path / 'rest' / 'epoch_1.pth')['meta']['seed']
    train(tmp_path / 'whole', 3, **{'randomness.seed': seed})
    runner = train(tmp_path / 'rest', 3, resume=True, scores=(0.3, 0.2))
    assert runner.seed == seed
    names = {'epoch_3.pth', 'epoch_3_int8.clipq'} | {
        f'best_test_score_epoch_2{end}' for end in ('.pth', '_int8.clipq')
    }
    found = [results(tmp_path / name) for name in ('whole', 'rest')]
    assert found[0].keys() == found[1].keys() == names
    assert found[0] == found[1]


@pytest.mark.parametrize(
    'lost', ['set_random_states', pytest.param('set_order', marks=pytest.mark.slow)]
)
def test_without_what_it_restores_it_would_not(train, tmp_path, monkeypatch, lost):
    stopped_at(tmp_path / 'rest', 1, train, monkeypatch)
    shutil.copytree(tmp_path / 'rest', tmp_path / 'other')
    train(tmp_path / 'rest', 2, resume=True, scores=(0.2,))
    monkeypatch.setattr(resume_hook, lost, lambda *args: None)
    train(tmp_path / 'other', 2, resume=True, scores=(0.2,))
    found = [results(tmp_path / name)['epoch_2.pth'] for name in ('rest', 'other')]
    assert found[0] != found[1]


def test_a_validation_and_an_export_that_were_stopped_are_done_first(train, tmp_path, monkeypatch):
    train(tmp_path / 'whole', 1, scores=(0.5,), **{'randomness.seed': 3})
    for what in ('validation', 'export'):
        folder = tmp_path / what
        with monkeypatch.context() as patch:

            def stop(*args, **kwargs):
                raise KeyboardInterrupt

            if what == 'validation':
                patch.setattr('mmengine.runner.loops.ValLoop.run', stop)
            else:
                patch.setattr('mmclipq.engine.hooks.int8_export_hook.export_checkpoint', stop)
            with pytest.raises(KeyboardInterrupt):
                train(folder, 1, scores=(0.5,), **{'randomness.seed': 3})
        assert len(results(folder)) == (1 if what == 'validation' else 2)
        values = (0.5,) if what == 'validation' else ()
        train(folder, 1, resume=True, scores=values, **{'randomness.seed': 3})
        assert results(folder) == results(tmp_path / 'whole')


def test_an_older_checkpoint_goes_when_the_new_one_is_whole(train, tmp_path, monkeypatch):
    """At every step a whole checkpoint has the name that ``last_checkpoint`` says."""
    events, replace = [], os.replace
    folder = tmp_path / 'run'

    def checked(source, target):
        last = folder / 'last_checkpoint'
        if last.exists():
            checkpoint(Path(last.read_text()))
        replace(source, target)
        events.append(Path(target).name)

    monkeypatch.setattr(writing.os, 'replace', checked)
    runner = train(folder, 2)
    named = [name for name in events if not name.endswith('.clipq')]
    assert named == ['epoch_1.pth', 'last_checkpoint', 'best_test_score_epoch_1.pth',
                     'epoch_1.pth', 'last_checkpoint', 'epoch_2.pth', 'last_checkpoint',
                     'best_test_score_epoch_2.pth', 'epoch_2.pth', 'last_checkpoint']  # fmt: skip
    assert {name for name in results(folder) if name.endswith('.pth')} == {
        'epoch_2.pth', 'best_test_score_epoch_2.pth'}  # fmt: skip
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, WholeCheckpointHook))
    assert hook.backend_args == {'backend': BACKEND}


def test_what_a_killed_training_had_still_to_remove_goes(train, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    with monkeypatch.context() as patch:

        def stop(self):
            if self._hub.get_info(OUTDATED):
                raise SystemExit

        patch.setattr(whole_checkpoint_hook._Later, 'remove_now', stop)
        with pytest.raises(SystemExit):
            train(folder, 2)
    assert {'epoch_1.pth', 'epoch_2.pth'} <= results(folder).keys()
    train(folder, 2, resume=True, scores=(0.3,))
    assert 'epoch_1.pth' not in results(folder)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == 'truncated':
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize('how', ['truncated', pytest.param('altered', marks=pytest.mark.slow)])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(train, tmp_path, log_of, how):
    folder, more = tmp_path / 'run', {'default_hooks.checkpoint.max_keep_ckpts': -1}
    train(folder, 2, **more)
    whole = results(folder)
    damage(folder / 'epoch_2.pth', how)
    runner = train(folder, 2, resume=True, scores=(0.3,), **more)
    log = log_of(runner)
    assert f'{folder}/epoch_2.pth: found no whole checkpoint' in log
    assert 'resumed epoch: 1' in log
    assert results(folder) == whole
    for epoch in (1, 2):
        damage(folder / f'epoch_{epoch}.pth', how)
    with pytest.raises(ClipQError, match=r'found no whole checkpoint to resume from, epoch_2\.pth'):
        train(folder, 3, resume=True)
    with pytest.raises(ClipQError, match=r'epoch_1\.pth: found no whole checkpoint \('):
        train(folder, 3, resume=True, load_from=str(folder / 'epoch_1.pth'))
    with pytest.raises(ClipQError, match='absent.pth: found no whole checkpoint .no such file'):
        train(folder, 3, load_from=str(folder / 'absent.pth'))


def test_a_full_disk_is_a_sentence_and_the_older_checkpoint_stays(train, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    stopped_at(folder, 1, train, monkeypatch)
    before = results(folder)

    def refuse(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, 'write', refuse)
        with pytest.raises(ClipQError) as caught:
            train(folder, 3, resume=True)
    text = f'{folder}/epoch_2.pth: found No space left on device, wanted a place to write to'
    assert str(caught.value) == text
    assert results(folder) == before
    assert not list(folder.glob('.*.part'))


def test_random_states_survive_a_checkpoint(tmp_path):
    random.gauss(0, 1)
    np.random.normal()
    torch.save(random_states(), tmp_path / 'a.pth')

    def draw():
        return [random.gauss(0, 1), random.random(), *np.random.normal(size=3).tolist(),
                *torch.rand(3).tolist()]  # fmt: skip

    wanted = draw()
    assert draw() != wanted
    set_random_states(torch.load(tmp_path / 'a.pth', weights_only=True))
    assert draw() == wanted


def test_the_tool_gives_every_training_the_hook_once(small_config, tmp_path):
    with resumable_training():
        for hooks in ([], [dict(type='mmclipq.ResumeHook')]):
            runner = Runner.from_cfg(small_config(custom_hooks=hooks))
            kinds = [type(hook).__name__ for hook in runner.hooks]
            assert kinds.count('ResumeHook') == 1
        cfg = Config(dict(a=1))
        cfg.dump(tmp_path / 'a.py')
    assert Config.fromfile(tmp_path / 'a.py').a == 1
