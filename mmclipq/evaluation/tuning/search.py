"""Ranges chosen by the detections themselves, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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

LEAST_GAIN, ERRORS = 0.002, 4.0
"""Share of the distance by which another range must be nearer to be taken, and in how many standard
errors of its gain over the images. Hundreds of ranges are tried: with two, several would be taken
for luck alone, and they lose AP on other images."""


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
        if self.dense is not None:
            for env in self.kept:
                self.dense.advance(env, self.position, position)
        self.position = position

    def distances(
        self, wanted: Sequence[Sequence[Detections]], limit: float = math.inf
    ) -> list[float]:
        """How far each image's detections are from those ``wanted``, with the ranges as they are.

        It ends as soon as the sum is more than ``limit``.
        """
        apart: list[float] = []
        for index, (images, samples) in enumerate(self.images):
            if self.dense is not None:
                env = dict(self.kept[index])
                self.given.outputs = self.dense.advance(env, self.position)
            found = _detections(self.session.predict(images, samples), index)
            apart.append(sum(map(image_distance, found, wanted[index])))
            if sum(apart) > limit:
                break
        return apart


def is_nearer(found: Sequence[float], best: Sequence[float]) -> bool:
    """Whether distances of images are smaller than the best ones so far, beyond luck.

    Args:
        found: Of each image; of fewer images if it is known not to be nearer.
        best: Of each image.
    """
    if len(found) < len(best) or sum(found) >= (1 - LEAST_GAIN) * sum(best):
        return False
    gains = np.subtract(best, found)
    if len(gains) == 1:
        return True
    error = gains.std(ddof=1) / math.sqrt(len(gains))
    return bool(gains.mean() > ERRORS * error)


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
    the session's held images; the one that brings the detections nearest to float's stands, if that
    cannot be luck (:func:`is_nearer`). Steps
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
        whole = max(sum(float(one.scores.sum()) for batch in wanted for one in batch), 1e-9)
        best = before = trials.distances(wanted)
        for name, group, position in bar:
            part, simulation = session.parts[name], trials.simulations[name]
            if name == 'dense':
                trials.move_to(position)
            elif trials.dense is not None:
                trials.move_to(len(trials.dense.order) - 1)
            kind = simulation.types[group.units[0]]
            now = CodeRange(kind.range_exponent, kind.signed, kind.offset)
            key = f'range {name}: {group.key}'
            if key not in progress:
                chosen, least = now, best
                for range_ in near_ranges(group, group.statistics(part.histograms())):
                    if range_ == now:
                        continue
                    _set(simulation, group, range_)
                    found = trials.distances(wanted, sum(least))
                    if sum(found) < sum(least) and is_nearer(found, best):
                        chosen, least = range_, found
                progress[key] = [list(chosen), least]
            (exponent, signed, offset), best = progress[key]
            chosen = CodeRange(exponent, signed, offset)
            _set(simulation, group, chosen)
            if chosen != now:
                part.chosen[group.key] = changed[f'{name}: {group.name}'] = chosen
            bar.set_postfix_str(f'distance {sum(best) / whole:.4f}')
    return SearchResult(sum(before) / whole, sum(best) / whole, changed, len(order))


def _set(simulation: Simulation, group: RangeGroup, range_: CodeRange) -> None:
    simulation.types.update(dict.fromkeys(group.units, TensorType(*range_)))
