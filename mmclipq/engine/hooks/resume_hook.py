"""Lets a training that was killed at any moment go on as if it had not been."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..._compat import load_checkpoint
from ...errors import ClipQError, first_line
from ...graph.writing import write_atomically
from ...registry import HOOKS
from .whole_checkpoint_hook import VALIDATED, WholeCheckpointHook

CHECKPOINT_KEY = 'random_states'


def random_states() -> dict[str, Any]:
    """States of all generators of random numbers, in types that ``weights_only`` loads."""
    version, numbers, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        'python': [version, list(numbers), gauss],
        'numpy': [torch.from_numpy(np.asarray(keys, np.int64)), place, has_gauss, cached],
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Set what :func:`random_states` gave."""
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers), gauss))
    keys, *rest = states['numpy']
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if len(states.get('cuda', ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([state.cpu() for state in states['cuda']])


def set_order(loader: DataLoader, seed: int) -> None:
    """Let samplers draw the order of images as those of a training with another seed do."""
    samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
    for sampler in samplers:
        if hasattr(sampler, 'seed'):
            sampler.seed = seed


def check_checkpoint_file(path: str | Path) -> None:
    """Return if a checkpoint is a whole file; its content is read, not unpickled.

    Raises:
        ClipQError: naming it and what is wrong.
    """
    try:
        if not Path(path).is_file():
            raise OSError('no such file')
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if damaged := file.testzip():
                    raise OSError(f'{damaged} is damaged')
        else:  # the format before PyTorch 1.6, or no checkpoint at all
            load_checkpoint(path)
    except Exception as error:
        raise ClipQError(
            f'{path}: found no whole checkpoint ({first_line(error)}), wanted one that MMEngine '
            'wrote; give another one'
        ) from error


def newest_checkpoint(folder: Path, names: list[str], log: Any) -> Path | None:
    """The checkpoint to resume from: the one that ``last_checkpoint`` names, if it is whole.

    Args:
        folder: Where the checkpoints lie, with ``last_checkpoint``.
        names: Patterns of their names, such as ``epoch_*.pth``.
        log: Called with a warning for each one that is not whole.

    Returns:
        It, else the newest whole one; None where there is no checkpoint at all.

    Raises:
        ClipQError: if there are checkpoints and none is whole.
    """
    found = {path for name in names for path in folder.glob(name)}
    ordered = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    last = folder / 'last_checkpoint'
    if last.is_file() and (named := last.read_text().strip()):
        path = Path(named)
        if not path.is_file():  # the folder was moved
            path = folder / path.name
        ordered = [path, *(other for other in ordered if other.name != path.name)]
    for path in ordered:
        try:
            check_checkpoint_file(path)
        except ClipQError as error:
            log(f'mmclipq: {error}')
        else:
            return path
    if ordered:
        raise ClipQError(
            f'{folder}: found no whole checkpoint to resume from, {ordered[0].name} is not; wanted '
            'one; start again without --resume'
        )
    return None


@HOOKS.register_module()
class ResumeHook(Hook):
    """Makes ``resume`` give what an undisturbed training gives.

    * Every ``CheckpointHook`` becomes a :class:`WholeCheckpointHook`.
    * ``resume`` without a path starts at the newest whole checkpoint.
    * An epoch starts with the random numbers that the checkpoint before it holds, whatever
      validation and exports have drawn since, and the order of images is that of the first run. One
      process alone has this; workers of data loaders start anew.
    * Where best checkpoints are kept, the validation behind the checkpoint is done first, unless
      the checkpoint says that it is.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None
        self._resumed = self._in_epoch = False

    def before_run(self, runner: Runner) -> None:
        if runner._train_loop is None or runner._has_loaded:
            return
        names = []
        for hook in runner.hooks:
            if type(hook) is CheckpointHook:
                hook.__class__ = WholeCheckpointHook
                hook.of_local_files(runner)
            if isinstance(hook, CheckpointHook):
                names.append(hook.filename_tmpl.format('*'))
        path = runner._load_from
        if path is not None and '://' not in str(path):
            check_checkpoint_file(path)
        elif path is None and runner._resume:
            path = newest_checkpoint(Path(runner.work_dir), names, runner.logger.warning)
            runner._load_from = None if path is None else str(path)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._resumed = bool(runner._resume)
        if self._resumed and get_world_size() == 1:
            self._states = checkpoint.get(CHECKPOINT_KEY)

    def before_train(self, runner: Runner) -> None:
        if not self._resumed:
            return
        set_order(runner.train_dataloader, runner.seed)
        kept = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        for hook in kept:
            hook.last_ckpt = hook.last_ckpt or runner._load_from
        loop, epoch = runner.train_loop, runner.epoch
        due = (
            runner.val_loop is not None
            and isinstance(loop, EpochBasedTrainLoop)
            and epoch >= max(1, loop.val_begin)
            and (epoch % loop.val_interval == 0 or epoch == loop.max_epochs)
        )
        done = runner.message_hub.runtime_info.get(VALIDATED) == epoch
        if due and not done and any(hook.save_best for hook in kept):
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        if self._states is not None:
            set_random_states(self._states)
            self._states = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._in_epoch = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._in_epoch = False  # and CheckpointHook has written, if it counts iterations

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if get_world_size() > 1 or self._in_epoch:
            return
        # The next epoch starts here, although a validation may come in between.
        self._states = self._states or random_states()
        checkpoint[CHECKPOINT_KEY] = self._states


@contextmanager
def resumable_training() -> Iterator[None]:
    """Inside, every runner has a :class:`ResumeHook`, and configs are written whole."""
    register, dump = Runner.register_hooks, Config.dump

    def register_all(runner: Runner, *args: Any, **kwargs: Any) -> None:
        register(runner, *args, **kwargs)
        if not any(isinstance(hook, ResumeHook) for hook in runner.hooks):
            runner.register_hook(ResumeHook())

    def dump_whole(cfg: Config, file: str | Path | None = None) -> str | None:
        if file is None or not str(file).endswith('.py'):
            return dump(cfg, file)
        write_atomically(file, cfg.pretty_text.encode())
        return None

    with (
        mock.patch.object(Runner, 'register_hooks', register_all),
        mock.patch.object(Config, 'dump', dump_whole),
    ):
        yield
