"""From a run to its steps: trainings and measurements, each with a key of what determines it."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from .. import base_config
from ..apis.clipq_config import with_clipq
from ..version import __version__
from .definitions import DataSet, Run

KEY_LENGTH = 12
_BASE_NAMES = {'float': 'stock training', 'finetune': 'control', 'scratch': 'from scratch'}


def _key(*parts: Any) -> str:
    text = json.dumps([__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True)
class Job:
    """One step that is done once and kept.

    Attributes:
        kind: ``'train'``, ``'measure'`` or ``'time'``.
        name: For people.
        key: Of all that determines the result.
        content: What the step reads; JSON.
        config: The config as a Python literal.
        needs: Jobs whose results it reads.
    """

    kind: str
    name: str
    key: str
    content: Mapping[str, Any]
    config: str
    needs: tuple[Job, ...] = field(default=(), repr=False)

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f'{self.kind}-{self.key}'

    def chain(self) -> list[Job]:
        """All jobs that this one needs, in order, and itself."""
        found: dict[str, Job] = {}
        for job in self.needs:
            found |= {one.key: one for one in job.chain()}
        return [*found.values(), self]


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _read_config(path: str) -> Config:
    # MMEngine tells of every variable that a config reads, for each of its bases.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    return Config.fromfile(path)


def config_file(name: str) -> str:
    """Path of a config that ships with mmclipq."""
    return str(Path(base_config()).parents[1] / name)


def _job(kind: str, name: str, content: Mapping[str, Any], cfg: Config, *needs: Job) -> Job:
    text = repr(cfg.to_dict())
    return Job(kind, name, _key(kind, content, text, [n.key for n in needs]), content, text, needs)


class Recipes:
    """Makes the jobs of runs on one data set with one detector.

    Args:
        dataset: The data set.
        detector: Name of the detector among the data set's.
        budget: Entries that replace those of every config, for short trials.
        stock: A trained checkpoint of the stock detector, which takes the place of its training.
    """

    def __init__(
        self,
        dataset: DataSet,
        detector: str,
        budget: Mapping[str, Any] | None = None,
        stock: Path | None = None,
    ) -> None:
        self.dataset, self.detector, self.budget = dataset, detector, dict(budget or {})
        self.stock = None if stock is None else {'path': str(stock.resolve()), 'sum': _sum(stock)}
        self.entry = dataset.detectors[detector]

    def config(self, run: Run) -> Config:
        """What a run trains and is measured with."""
        stock = run.base in ('float', 'scratch')
        cfg = copy.deepcopy(_read_config(config_file(self.entry['float' if stock else 'finetune'])))
        options = {**self.dataset.options, **(self.dataset.float_options if stock else {})}
        cfg.merge_from_dict({**options, **self.budget})
        if run.svd is not None:
            head = {'type': 'mmclipq.SVDBBoxHead', 'svd_rank': self.entry['svd_rank']}
            rate = {'lr_mult': run.svd}
            cfg.merge_from_dict({
                'model.roi_head.bbox_head': head,
                'optim_wrapper.paramwise_cfg': {'custom_keys': {'shared_fcs': rate}},
            })  # fmt: skip
        if run.clipq is not None:
            cfg = with_clipq(cfg, _flat(run.clipq))
            # The int8 file is a step of its own here.
            cfg.custom_hooks = [h for h in cfg.custom_hooks if 'Int8ExportHook' not in h['type']]
        return cfg

    def training(self, run: Run, seed: int) -> Job:
        """The training of a run, and in front of it that of its start."""
        clipped = run.clipq is not None and run.base != 'float'
        trained = run if clipped else Run(run.base, svd=run.svd)
        cfg = self.config(trained)
        rival = run.rival if run.rival and run.base == 'finetune' else None
        if clipped:
            del cfg.clipq['int8']  # of the conversion, which follows
        content = {'seed': seed, 'validate': run.base != 'finetune', 'rival': rival}
        if run.base == 'float' and self.stock is not None:
            return _job('train', f'{self.detector}: {self.stock["path"]}', self.stock, cfg)
        start = () if run.base != 'finetune' else (self.training(Run('float'), seed),)
        return _job('train', self._name(trained, seed, rival), content, cfg, *start)

    def measurement(self, run: Run, seed: int) -> Job:
        """Accuracy and size of a run, and in front of it its training."""
        trained = self.trained_by(run)
        content = {'form': run.form, 'rival': run.rival}
        name = f'{self._name(run, seed, run.rival)}, {run.form}'
        return _job('measure', name, content, self.config(run), self.training(trained, seed))

    def trained_by(self, run: Run) -> Run:
        """The run whose training ``run`` measures: a rival that only converts takes the control."""
        from .rivals import RIVALS

        if run.rival is not None and not RIVALS[run.rival].trains:
            return Run(run.base, svd=run.svd)
        return run

    def timing(self, runs: Mapping[str, Run], seed: int) -> Job:
        """Milliseconds per image of all ``runs`` in turn, in one process."""
        jobs = {name: self.measurement(run, seed) for name, run in runs.items()}
        content = {'rows': {name: job.folder for name, job in jobs.items()}}
        name = f'{self.detector} seed {seed}: time per image'
        return _job('time', name, content, self.config(Run('float')), *jobs.values())

    def _name(self, run: Run, seed: int, rival: str | None) -> str:
        words = {
            'float': 'stock training',
            'finetune': 'control',
            'scratch': 'clipped from scratch',
        }
        parts = [words[run.base]]
        if run.clipq is not None:
            options = run.clipq
            ranges = ' '.join(
                f'{word} {options.get(key, "auto")}'
                for word, key in (('input', 'input_range'), ('weights', 'weight_range'))
            )
            lq = options.get('lq')
            parts = [*(parts if run.base != 'finetune' else ['clipped']), ranges]
            parts += [f'Lq to the {lq["target"]}'] if lq else []
        parts += [] if run.svd is None else [f'SVD {run.svd:g}']
        parts += [rival] if rival else []
        return f'{self.detector} seed {seed}: {", ".join(parts)}'


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options by path, but None and lists as they are."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            found |= {f'{key}.{name}': item for name, item in _flat(value).items()}
        else:
            found[key] = value
    return found
