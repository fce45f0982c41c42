"""Writes the int8 file at the end of training and for each new best checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ...apis.int8_file import check_compression
from ...apis.quantize_checkpoint import export_checkpoint
from ...errors import ClipQError
from ...registry import HOOKS

_BEST = re.compile(r'(best_.+_(?:epoch|iter)_\d+)_int8\.clipq')


def _exported_name(checkpoint: str) -> Path:
    return Path(checkpoint).with_name(f'{Path(checkpoint).stem}_int8.clipq')


@HOOKS.register_module()
class Int8ExportHook(Hook):
    """Exports ``<checkpoint>_int8.clipq`` beside the last and every new best checkpoint.

    The file is made from the saved checkpoint, so averaged (EMA) weights are exported where they
    are what the checkpoint holds. A failed export is reported and does not stop the training.

    Args:
        calib_images: Number of calibration images; by default that of ``clipq.int8``.
        best: Whether to export best checkpoints, too.
        size: Wanted bytes of the file as a share of the float32 weights, as ``--size`` of
            ``tools/quantize.py``; None for codes with the least error.
        compress: ``'fast'`` or ``'best'``, see :func:`mmclipq.apis.int8_file.save_int8`.
    """

    priority = 'LOWEST'

    def __init__(
        self,
        calib_images: int | None = None,
        best: bool = True,
        size: float | None = None,
        compress: str = 'fast',
    ) -> None:
        check_compression(compress)
        if size is not None and size <= 0:
            raise ClipQError(
                f'Int8ExportHook: found size={size}, wanted a share of the float32 weights above '
                'zero, or None'
            )
        self.size, self.compress = size, compress
        self.calib_images = calib_images
        self.best = best
        self._exported: dict[str, Path] = {}

    def before_train(self, runner: Runner) -> None:
        # A training that goes on knows best checkpoints already. It may have been stopped before
        # their export.
        for path in self._best_checkpoints(runner) if self.best else ():
            if not _exported_name(path).is_file():
                self._export(runner, path)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.best:
            for path in self._best_checkpoints(runner):
                self._export(runner, path)

    def after_train(self, runner: Runner) -> None:
        last = next(
            (h.last_ckpt for h in runner.hooks if isinstance(h, CheckpointHook) and h.last_ckpt),
            None,
        )
        if last is None:
            runner.logger.warning(
                'mmclipq: found no checkpoint of this training, wanted one to export as int8; '
                'set save_last in CheckpointHook or run tools/quantize.py'
            )
        else:
            self._export(runner, last)

    def _best_checkpoints(self, runner: Runner) -> list[str]:
        found: list[Any] = []
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.save_best is not None:
                found.append(getattr(hook, 'best_ckpt_path', None))
                found += getattr(hook, 'best_ckpt_path_dict', {}).values()
        return [str(path) for path in found if path]

    @master_only
    def _export(self, runner: Runner, checkpoint: str) -> None:
        if checkpoint in self._exported or not Path(checkpoint).is_file():
            return
        out = _exported_name(checkpoint)
        # CheckpointHook deletes the best checkpoint that a better one replaces: follow it.
        for gone in [path for path in self._exported if not Path(path).is_file()]:
            self._exported.pop(gone).unlink(missing_ok=True)
        # So may the process have done that this one goes on for.
        for file in out.parent.iterdir():
            name = _BEST.fullmatch(file.name)
            if name and not file.with_name(f'{name[1]}.pth').is_file():
                file.unlink(missing_ok=True)
        self._exported[checkpoint] = out
        try:
            # Building a detector draws random numbers; the training must not notice.
            with torch.random.fork_rng(devices=[]):
                device = str(next(runner.model.parameters()).device)
                summary = export_checkpoint(
                    runner.cfg,
                    checkpoint,
                    out,
                    self.compress,
                    calib_images=self.calib_images,
                    device=device,
                    size=self.size,
                )
        except ClipQError as error:
            runner.logger.error(f'mmclipq: no int8 file for {checkpoint}: {error}')
        except Exception:  # a full disk or a defect must not cost the training
            runner.logger.exception(f'mmclipq: no int8 file for {checkpoint}')
        else:
            runner.logger.info(f'mmclipq: {summary}')
