"""Which layers must stay in float for a detector to keep its AP, and what they cost."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ...apis.quantize_model import CalibrationSession, Quantized
from ...calibration.options import CalibrationOptions
from ...detector import to_int8
from ...errors import ClipQError
from ...layers import ClipMixin
from ..coco import Detections
from ..interval import Difference, ap_differences
from .held_out import HeldOut
from .sensitivity import LayerSensitivity, in_float, layer_sensitivities
from .state import Progress

SENSITIVITY_IMAGES = 16
"""Images on which single layers are measured; AP is measured on all."""
_ROUNDS = 30


@dataclass(frozen=True)
class LayerCost:
    """A layer that stays in float.

    Attributes:
        layer: Its path.
        distance: What its rounding alone does to detections.
        milliseconds: How much longer one image takes.
        bytes: How many more its weights take.
    """

    layer: str
    distance: float
    milliseconds: float
    bytes: int


@dataclass
class Budget:
    """What came of a search for layers to keep in float.

    Attributes:
        max_drop: AP points that may be lost.
        difference: AP of float and of the int8 detector found, on the held-out images.
        all_int8: AP with every layer in int8.
        images: Number of held-out images.
        layers: Number of layers that could be int8.
        costs: The layers that stay in float, the most sensitive first.
        quantized: The integer graphs.
    """

    max_drop: float
    difference: Difference
    all_int8: float
    images: int
    layers: int
    costs: list[LayerCost]
    quantized: Quantized

    def __str__(self) -> str:
        d = self.difference
        lines = [
            f'{self.images} held-out images: AP of float {d.first:.4f}, of int8 '
            f'{self.all_int8:.4f} ({100 * (self.all_int8 - d.first):+.2f} points), with '
            f'{len(self.costs)} of {self.layers} layers in float {d.second:.4f} '
            f'({100 * d.difference:+.2f} points, 95 % interval {100 * d.low:+.2f} to '
            f'{100 * d.high:+.2f})'
        ]
        if self.costs:
            lines += [
                '| in float | distance of detections | ms per image | KiB |',
                '|---|---|---|---|',
            ]
        lines += [
            f'| {cost.layer} | {cost.distance:.4f} | {cost.milliseconds:+.2f} '
            f'| {cost.bytes / 1024:+.1f} |'
            for cost in self.costs
        ]
        return '\n'.join(lines)


def int8_detector(
    session: CalibrationSession, quantized: Quantized, left: Iterable[str] = ()
) -> Any:
    """An int8 detector of its own; the session's model stays as it is.

    Layers that are ``left`` in float clip nothing, as in a detector loaded from a file.
    """
    device = str(next(session.model.parameters()).device)
    model = copy.deepcopy(session.model)
    for path in left:
        layer = model.get_submodule(path)
        assert isinstance(layer, ClipMixin)  # only those are in graphs
        layer.input_exponent = layer.weight_exponent = None
    return to_int8(model, quantized, device=device)


class _Search:
    """Measures AP with some layers left in float, each choice once."""

    def __init__(
        self,
        session: CalibrationSession,
        options: CalibrationOptions,
        held_out: HeldOut,
        progress: Progress,
    ) -> None:
        self.session, self.options = session, options
        self.held_out, self.progress = held_out, progress
        self.bar = tqdm(desc='layers in float', unit='choice')

    def reasons(self, left: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(left, 'kept in float by --max-drop')

    def detector(self, left: Sequence[str]) -> tuple[Quantized, Any]:
        quantized = self.session.finish(self.options, self.reasons(left))
        return quantized, int8_detector(self.session, quantized, left)

    def found(self, left: Sequence[str]) -> list[Detections]:
        return self.held_out.found(self.detector(left)[1].predict, 'int8')

    def ap(self, left: Sequence[str]) -> float:
        key = f'ap {" ".join(sorted(left))}'
        if key not in self.progress:
            self.progress[key] = self.held_out.ap(self.found(left))
        self.bar.set_postfix_str(f'{len(left)} in float: AP {self.progress[key]:.4f}')
        self.bar.update()
        return self.progress[key]


def fewest(ranked: Sequence[str], enough: Any, keep: Sequence[str] = ()) -> list[str] | None:
    """The first few of ``ranked`` that are ``enough``, without those that can be spared.

    Args:
        ranked: Names, the most promising first.
        enough: Tells whether a choice is; more names are taken to be no worse.
        keep: Names that are in every choice.

    Returns:
        Names in the order of ``ranked``, or None if all of them are not enough.
    """
    if enough(list(keep)):
        return list(keep)
    low, high = 0, 1
    while not enough([*keep, *ranked[:high]]):
        if high >= len(ranked):
            return None
        low, high = high, min(2 * high, len(ranked))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough([*keep, *ranked[:middle]]) else (middle, high)
    chosen = list(ranked[:high])
    # The last one was needed; of the others, the least promising first.
    for name in reversed(chosen[:-1]):
        without = [other for other in chosen if other != name]
        if enough([*keep, *without]):
            chosen = without
    return [*keep, *chosen]


def within_budget(
    session: CalibrationSession,
    options: CalibrationOptions,
    held_out: HeldOut,
    max_drop: float,
    progress: Progress | None = None,
) -> Budget:
    """Leave as few layers in float as AP on held-out images needs.

    Layers are ranked by what their rounding alone does to the detections; as many of the first are
    left in float as needed, found by halving, and then each that can be spared is taken back.

    Args:
        session: A calibrated detector that has measured what ``options`` want.
        options: How ranges are chosen.
        held_out: Images with objects, none of which calibrated.
        max_drop: AP points (100 times AP) that may be lost.
        progress: Where results are kept.

    Raises:
        ClipQError: if the images have no objects, or no choice is enough.
    """
    held_out.check('--max-drop')
    progress = progress or Progress()
    with in_float(session):
        float_found = held_out.found(session.predict, 'float')
    wanted = held_out.ap(float_found)
    search = _Search(session, options, held_out, progress)
    session.choose(options)
    with search.bar:
        all_int8 = search.ap([])
        rows: list[LayerSensitivity] = []
        left: list[str] | None = []
        if 100 * (wanted - all_int8) > max_drop:
            rows = layer_sensitivities(session, held_out, progress, SENSITIVITY_IMAGES)
            ranked = [row.layer for row in rows]
            left = fewest(ranked, lambda names: 100 * (wanted - search.ap(names)) <= max_drop)
    if left is None:
        lost = 100 * (wanted - search.ap(ranked))
        raise ClipQError(
            f'--max-drop: found a loss of {lost:.2f} AP points even with all {len(ranked)} layers '
            f'in float, wanted at most {max_drop:g}; hold out more images or allow more'
        )
    quantized, detector = search.detector(left)
    found = held_out.found(detector.predict, 'int8')
    difference = ap_differences(held_out.matches(float_found), held_out.matches(found))[0]
    costs = _costs(search, left, {row.layer: row for row in rows}, detector)
    # The variants above left their own choice behind.
    quantized = session.finish(options, search.reasons(left))
    layers = len({node.weight for graph in quantized.graphs for node in graph.products()})
    return Budget(
        max_drop, difference, all_int8, len(held_out), layers + len(left), costs, quantized
    )


def _costs(
    search: _Search, left: Sequence[str], rows: Mapping[str, LayerSensitivity], detector: Any
) -> list[LayerCost]:
    costs = []
    for layer in tqdm(left, desc='costs', unit='layer', disable=not left):
        _, other = search.detector([name for name in left if name != layer])
        slow, fast = _milliseconds([detector, other], search)
        row = rows[layer]
        costs.append(LayerCost(layer, row.distance, slow - fast, 3 * row.weights))
    return costs


@torch.no_grad()
def _milliseconds(detectors: Sequence[Any], search: _Search) -> list[float]:
    """Least time of each detector on the first held image, in turn.

    The least of several is what other work on the machine disturbs least. Where there is a dense
    part, it alone is timed: suppression of boxes takes the same time for all.
    """
    images, samples = search.session.held.held[0]
    times = [float('inf')] * len(detectors)
    for _ in range(_ROUNDS):
        for index, detector in enumerate(detectors):
            dense = detector.int8_backend
            start = time.perf_counter()
            if dense is None or detector.int8_boxes:
                detector.predict(images, samples)
            else:
                dense.run(images)
            times[index] = min(times[index], time.perf_counter() - start)
    return [1000 * spent for spent in times]
