"""Ranges chosen by the detections themselves, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from tqdm import tqdm

from ...apis.quantize_model import CalibrationSession
from ...calibration.options import CalibrationOptions
from ...calibration.range_search import CodeRange
from ...graph.ir import TensorType
from ...lowering.execution import Execution
from ...lowering.measured import near_ranges
from ...lowering.ranges import RangeGroup
from ...lowering.simulation import Simulation
from ..coco import Detections
from .distance import image_distance
from .sensitivity import in_float
from .state import Progress

LEAST_GAIN = 0.002
"""Share of the distance by which another range must be nearer to be taken."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        before, after: Distance of the detections from float's, see
            :func:`mmclipq.evaluation.tuning.distance.distance`.
        changed: New range of each tensor whose range has changed, by part and name.
        tensors: Number of ranges that were tried.
    """

    before: float
    after: float
    changed: dict[str, CodeRange]
    tensors: int

    def __str__(self) -> str:
        return (
            f'search: {len(self.changed)} of {self.tensors} ranges changed, distance of the '
            f'detections from float {self.before:.4f} before, {self.after:.4f} after'
        )


class _Given(Execution):
    """Gives a part's outputs that were computed before."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.outputs: Any = None

    def run(self, *inputs: Any, **options: Any) -> Any:
        return self.outputs


class _Trials:
    """Predicts on the held images with some ranges; what they do not touch is kept.

    Attributes:
        position: Number of the dense part's step up to which ``kept`` has come.
        kept: Of each image, what later steps of the dense part read.
    """

    def __init__(self, session: CalibrationSession) -> None:
        self.session, self.images = session, session.held.held
        self.simulations: dict[str, Simulation] = {
            name: part.simulation() for name, part in session.parts.items()
        }
        self.dense = self.simulations.get('dense')
        self.position = 0
        self.kept: list[dict[fx.Node, Any]] = []
        if self.dense is not None:
            self.given = _Given(self.dense.module)
            self.kept = [self.dense.begin(images) for images, _ in self.images]

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Inside, the session's parts run as they are tried."""
        with ExitStack() as stack:
            for name, part in self.session.parts.items():
                dense = name == 'dense'
                execution = self.given if dense else self.simulations[name]
                stack.enter_context(part.executing(execution))
            yield

    def move_to(self, position: int) -> None:
        """Settle the dense part up to a step, which is not run yet."""
        for env in self.kept:
            self.dense.advance(env, self.position, position)
        self.position = position

    def distance(self, wanted: Sequence[Sequence[Detections]], limit: float = math.inf) -> float:
        """How far the detections are from those ``wanted`` in each image's batch, with the ranges
        as they are just now; infinity as soon as it is more than ``limit``."""
        whole = sum(float(one.scores.sum()) for batch in wanted for one in batch)
        apart = 0.0
        for index, (images, samples) in enumerate(self.images):
            if self.dense is not None:
                env = dict(self.kept[index])
                self.given.outputs = self.dense.advance(env, self.position)
            found = _detections(self.session.predict(images, samples), index)
            apart += sum(map(image_distance, found, wanted[index]))
            if apart > limit * max(whole, 1e-9):
                return math.inf
        return apart / max(whole, 1e-9)


def _detections(samples: Any, image: int) -> list[Detections]:
    return [Detections.of(sample)._replace(image=image) for sample in samples]


def _ordered(
    session: CalibrationSession, options: CalibrationOptions, trials: _Trials
) -> Iterator[tuple[str, RangeGroup, int]]:
    """Part, tensors, and the number of the first step that rounds them; the dense part first."""
    for name, part in session.parts.items():
        order = trials.simulations[name].order
        found = [(min(order[u.node] for u in group.units), group)
                 for group in part.groups(options.offsets)]  # fmt: skip
        for position, group in sorted(found, key=lambda item: item[0]):
            yield name, group, position


@torch.no_grad()
def search_ranges(
    session: CalibrationSession,
    options: CalibrationOptions,
    progress: Progress | None = None,
) -> SearchResult:
    """Choose ranges by the error of outputs, then by what they do to the detections.

    One tensor after the other, in the order of execution, other ranges near its own are tried on
    the session's held images; the one that brings the detections nearest to float's stands. Steps
    before the tensor are computed once. Nothing is random.

    Args:
        session: A calibrated detector.
        options: How ranges are chosen; its method gives way to ``'output'``.
        progress: Where decisions are kept.
    """
    progress = progress or Progress()
    options = replace(options, method='output')
    session.measure(options)
    session.choose(options)
    with in_float(session):
        wanted = [
            _detections(session.predict(images, samples), index)
            for index, (images, samples) in enumerate(session.held.held)
        ]
    trials = _Trials(session)
    order = list(_ordered(session, options, trials))
    changed: dict[str, CodeRange] = {}
    with trials.executing(), tqdm(order, desc='search', unit='tensor') as bar:
        best = before = trials.distance(wanted)
        for name, group, position in bar:
            part, simulation = session.parts[name], trials.simulations[name]
            if name == 'dense':
                trials.move_to(position)
            elif trials.dense is not None:
                trials.move_to(len(trials.dense.order) - 1)
            kind = simulation.types[group.units[0]]
            now = CodeRange(kind.exponent, kind.signed, kind.offset)
            key = f'range {name}: {group.key}'
            if key not in progress:
                tried = {now: best}
                for range_ in near_ranges(group, group.statistics(part.histograms())):
                    if range_ not in tried:
                        _set(simulation, group, range_)
                        tried[range_] = trials.distance(wanted, best)
                nearest = min(tried, key=tried.__getitem__)
                chosen = nearest if tried[nearest] < (1 - LEAST_GAIN) * best else now
                progress[key] = [list(chosen), tried[chosen]]
            (exponent, signed, offset), best = progress[key]
            chosen = CodeRange(exponent, signed, offset)
            _set(simulation, group, chosen)
            if chosen != now:
                part.chosen[group.key] = changed[f'{name}: {group.name}'] = chosen
            bar.set_postfix_str(f'distance {best:.4f}')
    return SearchResult(before, best, changed, len(order))


def _set(simulation: Simulation, group: RangeGroup, range_: CodeRange) -> None:
    simulation.types.update(dict.fromkeys(group.units, TensorType(*range_)))
