"""Short training runs on the tiny data, and a metric that exists on untrained detectors."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner

from mmclipq.engine import ClipQHook

_number = itertools.count()


@METRICS.register_module(force=True)
class ScriptedMetric(BaseMetric):
    """Gives the listed values, one for each evaluation."""

    default_prefix = 'test'

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {'score': next(self.values)}


SMALL = {
    'clipq.observe_iters': 2,
    'clipq.int8.calib_images': 2,
    'train_dataloader.batch_size': 4,
    'train_dataloader.dataset.pipeline.2.scale': (96, 96),
    'val_dataloader.dataset.pipeline.1.scale': (96, 96),
    'test_dataloader.dataset.pipeline.1.scale': (96, 96),
    'train_cfg.max_epochs': 1,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
    'val_evaluator': dict(_delete_=True, type='ScriptedMetric', values=[0.5] * 9),
    'custom_hooks': [dict(type='mmclipq.ClipQHook')],
}


@pytest.fixture(autouse=True)
def _plain_logs(monkeypatch):
    """No pretty-printing of configs and no survey of the machine: they take most of a short run."""

    def text(cfg: Config) -> str:
        return '\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items())

    monkeypatch.setattr(Config, 'pretty_text', property(text))
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


@pytest.fixture
def small_config(load_config, tmp_path) -> Callable:
    """The quickstart's clipq config, three iterations an epoch, with overrides."""

    def make(**overrides: Any) -> Config:
        cfg = load_config('quickstart/clipq_yolov3_digits.py')
        number = next(_number)
        cfg.experiment_name = f'test_engine_{number}'
        cfg.work_dir = str(tmp_path / f'run{number}')
        cfg.randomness = dict(seed=0)
        cfg.merge_from_dict(copy.deepcopy({**SMALL, **overrides}))
        return cfg

    return make


@pytest.fixture
def make_runner(small_config) -> Callable:
    """A runner of :func:`small_config`."""

    def make(**overrides: Any) -> Runner:
        return Runner.from_cfg(small_config(**overrides))

    return make


@pytest.fixture
def log_of() -> Callable:
    """Text of a runner's log file."""
    return lambda runner: (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()


@pytest.fixture
def hook_of() -> Callable:
    """The one hook of a class in a runner."""

    def find(runner: Runner, kind: type = ClipQHook):
        (found,) = (hook for hook in runner.hooks if isinstance(hook, kind))
        return found

    return find
