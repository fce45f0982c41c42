"""One training: MMEngine's runner on a config, resumed where it was interrupted."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from .._compat import load_checkpoint, mend_heads
from .files import RESULT, write
from .rivals import RIVALS

CURVE = 'curve.json'


class CurveHook(Hook):
    """Keeps what each validation found, by epoch, in a file: a resumed training adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        curve = json.loads(self.path.read_text()) if self.path.is_file() else {}
        numbers = {key: float(value) for key, value in (metrics or {}).items()}
        write(self.path, {**curve, str(runner.epoch): numbers})


def start_of(needs: Sequence[Path]) -> Path | None:
    """The checkpoint that the training of a folder ended with, by its own path if it has one."""
    if not needs:
        return None
    return needs[0] / json.loads((needs[0] / RESULT).read_text())['checkpoint']


class RivalRunner(Runner):
    """Lets a rival change the detector, which has the start's weights then, before it trains."""

    rival: str
    start: Path
    whole: Config  # with the test set, whose pipeline reads calibration images

    def build_model(self, model: Any) -> nn.Module:
        built = super().build_model(model)
        RIVALS[self.rival].prepare(built, self.whole, self.start)
        return built

    def _init_model_weights(self) -> None:
        """Leave the start's weights, which MMEngine would draw anew before it trains."""


def training_config(
    cfg: Config, content: Mapping[str, Any], folder: Path, start: Path | None
) -> Config:
    """``cfg`` as it is trained in ``folder``: seed, start, checkpoints, and where it goes on.

    Args:
        cfg: The job's config, which is changed.
        content: ``seed``, ``validate`` and ``rival`` of the job.
        folder: Work folder.
        start: Checkpoint to start at.
    """
    cfg.work_dir = str(folder)
    cfg.randomness = dict(seed=content['seed'])
    # One checkpoint is kept, to go on at, and the last of all is the result.
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1, save_last=True)
    if not content['validate']:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    found = find_latest_checkpoint(str(folder))
    cfg.resume = found is not None and Path(found).is_file()
    if cfg.resume:
        cfg.load_from = found
    else:  # a rival's runner loads the start itself
        cfg.load_from = None if start is None or content['rival'] else str(start)
    return cfg


def train(
    cfg: Config, content: Mapping[str, Any], folder: Path, needs: Sequence[Path]
) -> dict[str, Any]:
    """Train; returns the name of the last checkpoint and the validations.

    Args:
        cfg: The config.
        content: ``seed``; ``validate``: whether to validate; ``rival``: what changes the detector.
            Or the ``path`` of a checkpoint that takes the place of the training.
        folder: Work folder, in which a training that was interrupted goes on.
        needs: Folder of the training whose checkpoint this one starts at, if any.
    """
    if 'path' in content:
        return {'checkpoint': content['path'], 'curve': {}}
    start = start_of(needs)
    whole = copy.deepcopy(cfg)
    cfg = training_config(cfg, content, folder, start)
    mend_heads()
    kind: type[Runner] = Runner
    if content['rival'] is not None:
        fields = {'rival': content['rival'], 'start': start, 'whole': whole}
        kind = type('RivalRunner', (RivalRunner,), fields)
    runner = kind.from_cfg(cfg)
    curve = folder / CURVE
    runner.register_hook(CurveHook(curve))
    runner.train()
    last = find_latest_checkpoint(str(folder))
    state = load_checkpoint(last)
    state.pop('optimizer', None)  # of use to nobody any more
    state.pop('param_schedulers', None)
    checkpoint = folder / 'last.pth'
    torch.save(state, checkpoint)
    Path(last).unlink()
    (folder / 'last_checkpoint').unlink()
    return {
        'checkpoint': checkpoint.name,
        'curve': json.loads(curve.read_text()) if curve.is_file() else {},
    }
