"""The tiny project whose tools are killed: data, a detector, its checkpoint and int8 files."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

# Everything that the tools import, before the process is copied.
import analyze  # noqa: F401
import export  # noqa: F401
import mmdet.apis  # noqa: F401
import quantize  # noqa: F401
import train  # noqa: F401
from _contents import contents
from _killing import End, run_tool
from _seeds import one_stage
from kill import CASES, STOCK, Case
from make_digits import main as make_digits
from mmengine.config import Config

import mmclipq.analysis.page.write
import mmclipq.analysis.run
import mmclipq.engine
import mmclipq.evaluation.check
import mmclipq.evaluation.tuning.run
from mmclipq.apis import with_clipq

ROOT = Path(__file__).parents[1]
EPOCHS = 3


def _config(folder: Path) -> Config:
    """A training of seconds that draws random numbers, averages weights and keeps best ones."""
    os.environ['DIGITS_ROOT'] = str(folder / 'digits')
    cfg = Config.fromfile(ROOT / 'configs/quickstart/_base_/digits.py')
    cfg.model = one_stage(classes=10)
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (64, 64)
    flip = dict(type='RandomFlip', prob=0.5)
    cfg.train_dataloader.dataset.pipeline.insert(3, flip)
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=False)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS, val_interval=1)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)]
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP'
    )
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA')]
    options = {'observe_iters': 1, 'int8.calib_images': 3, 'lq.warmup_iters': 4}
    return with_clipq(cfg, options)


def _made(end: End, log: Path) -> None:
    if end.code:
        raise RuntimeError(f'found {end}, wanted the project\n{log.read_text()[-3000:]}')


def make_cases(folder: Path) -> dict[str, Callable[[], Case]]:
    """Makes the project; returns what makes each case."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = ['--train', '8', '--val', '4', '--size', '96', '96']
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        make_digits(['--out', str(folder / 'digits'), *digits])
    config = folder / 'tiny.py'
    _config(folder).dump(config)
    made = folder / 'trained'
    made.mkdir(exist_ok=True)
    # All checkpoints, to compare those of killed trainings with.
    options = ['default_hooks.checkpoint.max_keep_ckpts=-1']
    _made(
        run_tool('train', [*_training(config, str(made)), '--cfg-options', *options], made),
        folder / 'trained.log',
    )
    make = functools.partial(_case, config, made)
    return {name: functools.partial(make, name) for name in (*CASES, STOCK)}


def _training(config: Path, folder: str) -> list[str]:
    return [str(config), '--work-dir', folder, '--resume']


def _case(config: Path, made: Path, name: str) -> Case:
    pth, earlier = (str(made / f'epoch_{epoch}.pth') for epoch in (EPOCHS, 1))
    quantized = [str(config), pth, '--out', 'FOLDER/a.clipq', '--no-check']
    before = [earlier if word == pth else word for word in quantized]
    if name.startswith('train'):
        if name == STOCK:
            mock.patch.object(mmclipq.engine, 'resumable_training', contextlib.nullcontext).start()
        return Case(name, 'train', [_training(config, 'FOLDER')], others=_trained(made))
    if name == 'quantize':
        return Case(name, 'quantize', [quantized], [before])
    if name == 'search':
        tuned = [*quantized, '--search', '--max-drop', '100', '--held-images', '3']
        return Case(name, 'quantize', [tuned], [before])
    files: list[Path] = []
    for command in (quantized, before):
        files.append(made.parent / f'{len(files)}.clipq')
        arguments = [str(files[-1]) if word == 'FOLDER/a.clipq' else word for word in command]
        _made(run_tool('quantize', arguments, made), made.with_suffix('.log'))
    if name == 'export':
        ways = [['--format', 'onnx', '--out', 'FOLDER/a.onnx'],
                ['--format', 'openvino', '--out', 'FOLDER/a.xml'],
                ['--format', 'table', '--out', 'FOLDER/a.json']]  # fmt: skip
        new, old = ([[str(file), *way] for way in ways] for file in files)
        return Case(name, 'export', new, old)
    figures = [str(config), pth, '--out', 'FOLDER/report', '--suspects', '2', '--pictures', '1']
    new, old = [[*figures, '--sample', '3']], [[*figures, '--sample', '1']]
    return Case(name, 'analyze', new, old)


def _trained(made: Path) -> dict[str, set[str]]:
    """Digests that files of a training may have while it is not at its end."""
    return {**{name: {digest} for name, digest in contents(made).items()}, 'last_checkpoint': {'*'}}
