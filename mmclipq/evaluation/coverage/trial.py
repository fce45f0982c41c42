"""The stages through which one detector goes."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ..._compat import as_detector
from ...apis import load_int8, quantize, save_int8
from ...apis.quantize_model import preprocessed
from ...backends.base import backend_class
from ...errors import ClipQError
from ...fixed_point import EXPONENT_MAX
from ...prepare import prepare_model
from .fresh import annotated, fixed_size, fresh_detector, number_of_classes, trial_config
from .measure import (
    Choices,
    Execution,
    Work,
    decibels,
    executions,
    int8_share,
    leaves,
    noise_ratios,
    raw_outputs,
)
from .outcome import STAGES, STOCK_PREDICT, STOCK_STEP, Outcome, Settings
from .synthetic import synthetic_batch

Batch = dict[str, list[Any]]
SETTLING = 8
"""Images whose statistics the batch norms take: fewer would not hold for others."""

_NEEDS = {
    STOCK_STEP: ('build',),
    STOCK_PREDICT: ('build',),
    'step': (STOCK_STEP,),
    'convert': (STOCK_PREDICT,),
    'load': ('convert',),
    'predict': (STOCK_PREDICT, 'load'),
    'codes': ('predict',),
    'error': ('predict',),
    'time': ('predict',),
}


def sentence(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    lines = str(error).strip().splitlines() or ['no reason given']
    text = lines[0] if isinstance(error, ClipQError) else f'{type(error).__name__}: {lines[0]}'
    return text if len(text) <= 300 else f'{text[:297]}...'


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def largest_difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Largest difference within a tensor over its largest value; 0 if all are equal.

    Tensors that are zero but for rounding, as the gradient of the bias of an attention's keys is,
    count by a millionth of the largest value of all.
    """
    least = max(1e-6 * max(map(_largest, wanted.values()), default=0.0), 1e-30)
    return max(
        (_largest(found[key] - values) / max(_largest(values), least)
         for key, values in wanted.items()),
        default=0.0,
    )  # fmt: skip


def training_step(
    model: nn.Module, batch: Batch, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one step of gradient descent, by name.

    Args:
        model: Any detector; its parameters and its statistics are changed.
        batch: As a data loader gives it.
        seed: Of what the detector draws: regions, noise, dropout.

    Raises:
        ValueError: if a loss or a gradient is not finite.
    """
    _seed(seed)
    hub = MessageHub.get_current_instance()
    for key in ('epoch', 'iter'):  # a runner tells the heads whose losses change with time
        hub.update_info(key, 0)
    model.train()
    data = as_detector(model).data_preprocessor(copy.deepcopy(batch), True)
    losses = model(**data, mode='loss')
    total, _ = as_detector(model).parse_losses(losses)
    total.backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    found = {
        key: torch.stack([loss.detach().sum() for loss in leaves(value)])
        for key, value in losses.items()
        if any(True for _ in leaves(value))
    }
    for name, values in (*found.items(), *gradients.items()):
        if not values.isfinite().all():
            raise ValueError(f'{name}: found a value that is not finite after one step')
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    return found, gradients


class Trial:
    """Takes a detector through all stages that it can reach.

    Args:
        path: Its config.
        settings: How.
        folder: For its ``.clipq`` file.
        report: Called with the outcome so far whenever a stage begins, and at the end.
    """

    def __init__(
        self, path: str, settings: Settings, folder: Path, report: Callable[[Outcome], None]
    ) -> None:
        self.path, self.settings, self.folder, self.report = path, settings, folder, report
        self.outcome = Outcome(path)

    def run(self) -> Outcome:
        torch.set_num_threads(self.settings.threads)
        torch.set_flush_denormal(True)
        start = time.process_time()
        missing: set[str] = set()
        for stage in STAGES:
            if missing.intersection(_NEEDS.get(stage, ())):
                missing.add(stage)
                continue
            self.outcome.stage = stage
            self.report(self.outcome)
            try:
                getattr(self, f'_{stage.replace(" ", "_")}')()
            except Exception as error:
                self.outcome.failures[stage] = sentence(error)
                missing.add(stage)
        self.outcome.seconds = time.process_time() - start
        self.report(self.outcome)
        return self.outcome

    def _batch(self, count: int, seed: int) -> Batch:
        assert self.outcome.size is not None  # set before any batch is made
        seed += self.settings.seed
        return synthetic_batch(self.outcome.size, self.classes, count, seed, **annotated(self.cfg))

    def _batches(self, count: int, seed: int) -> list[Batch]:
        """Batches of one image each."""
        whole = self._batch(count, seed)
        return [{key: [values[index]] for key, values in whole.items()} for index in range(count)]

    def _build(self) -> None:
        self.cfg = trial_config(self.path)
        self.classes = number_of_classes(self.cfg)
        self.outcome.detector = self.cfg.model['type']
        fixed = fixed_size(self.cfg)
        tries = [(1, True), (1, False)]
        for times, few_boxes in tries if fixed else [*tries, (2, True), (4, True), tries[0]]:
            self.cfg = trial_config(self.path, few_boxes)
            self.outcome.size = times * (fixed or self.settings.size)
            several = self._batch(SETTLING, seed=1)
            self.model, settled = fresh_detector(self.cfg, several, self.settings.seed)
            if settled:
                break
        self.calibration = self._batches(self.settings.images, seed=1)
        self.images = self._batches(max(1, self.settings.images // 2), seed=2)

    def _predictions(self, detector: nn.Module) -> list[Any]:
        with torch.no_grad():
            return [
                as_detector(detector).test_step(copy.deepcopy(batch))[0] for batch in self.images
            ]

    def _stock_step(self) -> None:
        model = copy.deepcopy(self.model)
        self.step = training_step(model, self._batch(2, seed=3), self.settings.seed)

    def _stock_predict(self) -> None:
        self._predictions(self.model)
        self.work = self._work(self.model)

    def _work(self, detector: nn.Module) -> Work:
        """What ``detector`` computes in float to predict on the first image."""
        images, samples = next(preprocessed(detector, self.images[:1]))
        with torch.no_grad(), Work(detector) as work:
            as_detector(detector).predict(images, samples)
        return work

    def _step(self) -> None:
        model = copy.deepcopy(self.model)
        widest = 2.0**EXPONENT_MAX
        prepare_model(model, input_range=widest, weight_range=widest)
        found = training_step(model, self._batch(2, seed=3), self.settings.seed)
        differences = []
        for values, stock in zip(found, self.step, strict=True):
            if values.keys() != stock.keys():
                odd = sorted(values.keys() ^ stock.keys())
                raise ValueError(f'found other losses or gradients than the stock step: {odd[:3]}')
            differences.append(largest_difference(values, stock))
        self.outcome.loss_difference, self.outcome.gradient_difference = differences
        del self.step

    def _convert(self) -> None:
        model = copy.deepcopy(self.model)
        quantized = quantize(model, self.calibration)
        self.file = self.folder / 'trial.clipq'
        self.outcome.file_bytes = save_int8(self.file, model, quantized, self.cfg, {})
        for name, reason in quantized.left.items():
            self.outcome.left.setdefault(reason, []).append(name)

    def _load(self) -> None:
        kind = backend_class('auto')
        self.outcome.backend = kind.name
        self.outcome.against = 'simulated' if kind.name == 'reference' else 'reference'
        self.detector = load_int8(self.file, predicts=False)
        self.other = load_int8(self.file, backend=self.outcome.against, predicts=False)

    def _predict(self) -> None:
        for sample in self._predictions(self.detector):
            if not all(values.isfinite().all() for values in _result_tensors(sample)):
                raise ValueError('found a prediction that is not finite')

    def _executions(self, detector: nn.Module, backend: str) -> list[Execution]:
        with executions(backend_class(backend)) as found:
            self._predictions(detector)
        return found

    def _codes(self) -> None:
        ours = self._executions(self.detector, self.outcome.backend)
        others = self._executions(self.other, self.outcome.against)
        if len(ours) != len(others):
            raise ValueError(f'found {len(ours)} runs of graphs, wanted {len(others)}')
        total = differing = 0
        first = ''
        for mine, wanted in zip(ours, others, strict=True):
            for name, codes in wanted.codes.items():
                if codes.shape != mine.codes[name].shape:
                    raise ValueError(f'{name}: found codes of another shape')
                wrong = int((codes != mine.codes[name]).sum())
                total, differing = total + codes.numel(), differing + wrong
                first = first or (name if wrong else '')
            pairs = zip(mine.outputs, wanted.outputs, strict=True)
            if not first and not all(torch.equal(a, b) for a, b in pairs):
                first = 'an output in float'
        self.outcome.codes = total, differing
        self._shares(ours)
        if first:
            raise ValueError(f'{differing} of {total} codes differ, first in {first}')

    def _shares(self, found: list[Execution]) -> None:
        """Weights and multiply-adds in the graphs, beside those of layers that stay in float."""
        left = self._work(self.detector)
        self.outcome.weights = int8_share((execution.graph for execution in found), left)
        # Every image runs the same graphs in the same order.
        of_one = sum(e.operations for e in found[: len(found) // len(self.images)])
        others = left.of_layers + self.work.of_activations
        self.outcome.operations = of_one, of_one + others

    def _error(self) -> None:
        choices = Choices()
        with choices.of(self.model), raw_outputs(self.model) as wanted:
            self._predictions(self.model)
        with choices.repeat().of(self.detector), raw_outputs(self.detector) as found:
            self._predictions(self.detector)
        every: list[float] = []
        for head, tensors in wanted.items():
            ratios = noise_ratios(tensors, found.get(head, []))
            if ratios:
                self.outcome.decibels[head] = decibels(sum(ratios) / len(ratios))
            every += ratios
        if not every:
            raise ValueError('found no raw outputs, wanted those of a head')
        self.outcome.decibels['all'] = decibels(sum(every) / len(every))

    def _time(self) -> None:
        runs = {'float': self.model, 'int8': self.detector}
        prepared = {n: next(preprocessed(m, self.images[:1])) for n, m in runs.items()}
        least: dict[str, float] = {}
        with torch.no_grad():
            for index in range(self.settings.rounds + 1):  # the first does not count
                for name, model in runs.items():
                    images, samples = copy.deepcopy(prepared[name])
                    start = time.process_time()  # others may be using the machine
                    model.predict(images, samples)
                    passed = (time.process_time() - start) * 1000
                    if index:
                        least[name] = min(passed, least.get(name, passed))
        self.outcome.milliseconds = least['float'], least['int8']


def _result_tensors(sample: Any) -> list[Tensor]:
    """Floating-point tensors of a prediction."""
    tree: Mapping[str, Any] = {
        key: dict(value.items()) if hasattr(value, 'items') else value
        for key, value in sample.items()
        if key.startswith('pred')
    }
    return list(leaves(tree))
