"""What the rounding of each layer alone does to the detections of an otherwise float detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx
from tqdm import tqdm

from ...apis.quantize_model import CalibrationSession
from ...lowering.execution import Execution
from ...lowering.simulation import Simulation
from ..coco import Detections
from .distance import distance
from .held_out import HeldOut
from .state import Progress


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer's share in the loss.

    Attributes:
        layer: Path in the detector.
        distance: How far the detections move when its input and weights alone are rounded, see
            :func:`mmclipq.evaluation.tuning.distance.distance`.
        ap_loss: AP of float less AP with this layer rounded, NaN without annotations.
        weights: Number of its weights.
    """

    layer: str
    distance: float
    ap_loss: float
    weights: int


class _Suffix(Execution):
    """Gives a part's outputs for one image, with what is known of it in float."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation.module)
        self.simulation = simulation
        self.known: dict[fx.Node, Any] = {}
        self.changed: list[fx.Node] = []

    def run(self, *inputs: Any, **options: Any) -> Any:
        return self.simulation.again(self.known, self.changed)


@contextmanager
def in_float(session: CalibrationSession) -> Iterator[None]:
    """Inside, the session's parts run in float and nothing joins the statistics."""
    with ExitStack() as stack:
        for part in session.parts.values():
            stack.enter_context(part.executing(Execution(part.module)))
        yield


def layers_of(session: CalibrationSession) -> dict[str, list[tuple[str, str]]]:
    """Part and node of every call of each int8 layer by its path, once ranges are chosen."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, part in session.parts.items():
        for node, unit in part.simulation().layers.items():
            found.setdefault(unit.target, []).append((name, node))
    return found


@torch.no_grad()
def layer_sensitivities(
    session: CalibrationSession,
    held_out: HeldOut,
    progress: Progress | None = None,
    images: int | None = None,
) -> list[LayerSensitivity]:
    """Measure every layer, the one that moves the detections most first.

    For each image the float results of the dense part's steps are kept, and of a layer's turn only
    what follows from it is computed.

    Args:
        session: A calibrated detector whose ranges are chosen
            (:meth:`mmclipq.apis.quantize_model.CalibrationSession.choose`).
        held_out: Images to measure on.
        progress: Where results are kept image by image.
        images: How many of them; by default all.
    """
    progress = progress or Progress()
    layers = layers_of(session)
    simulations = {name: part.simulation() for name, part in session.parts.items()}
    batches = len(held_out) if images is None else min(images, len(held_out))
    found: dict[str, list[Detections]] = {layer: [] for layer in layers}
    wanted: list[Detections] = []
    with tqdm(total=batches * len(layers), desc='sensitivity', unit='layer') as bar:
        for index in range(batches):
            key = f'sensitivity {index}'
            if key not in progress:
                progress[key] = _of_image(session, simulations, layers, held_out, index, bar)
            else:
                bar.update(len(layers))
            record = progress[key]
            wanted.append(_read(index, record['float']))
            for layer in layers:
                found[layer].append(_read(index, record['layers'][layer]))
    known = held_out.infos is not None and batches == len(held_out)
    best = held_out.ap(wanted) if known else float('nan')
    weights = {layer: session.model.get_submodule(layer).weight for layer in layers}
    results = [
        LayerSensitivity(
            layer,
            distance(found[layer], wanted),
            best - held_out.ap(found[layer]) if known else float('nan'),
            cast(Tensor, weights[layer]).numel(),
        )
        for layer in layers
    ]
    return sorted(results, key=lambda row: -row.distance)


def _of_image(
    session: CalibrationSession,
    simulations: dict[str, Simulation],
    layers: dict[str, list[tuple[str, str]]],
    held_out: HeldOut,
    index: int,
    bar: tqdm,
) -> dict[str, Any]:
    """Detections in one image: of float, and with each layer rounded."""
    one = HeldOut(held_out.model, [held_out.batches[index]])
    suffix = None
    with ExitStack() as stack:
        for name, part in session.parts.items():
            simulations[name].only = ()
            execution: Execution = simulations[name]
            if name == 'dense':
                execution = suffix = _Suffix(simulations[name])
            stack.enter_context(part.executing(execution))

        def predict(images: Tensor, samples: Any) -> Any:
            if suffix is not None and not suffix.known:
                suffix.known = suffix.simulation.keep(images)
            return session.predict(images, samples)

        record: dict[str, Any] = {'float': _written(one.found(predict)[0]), 'layers': {}}
        for layer, calls in layers.items():
            for name, simulation in simulations.items():
                simulation.only = {node for part, node in calls if part == name}
            if suffix is not None:
                dense = {node for part, node in calls if part == 'dense'}
                nodes = suffix.simulation.module.graph.nodes
                suffix.changed = [n for n in nodes if n.name in dense]
            record['layers'][layer] = _written(one.found(predict)[0])
            bar.update()
    return record


def _written(found: Detections) -> list[Any]:
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()]


def _read(image: int, record: list[Any]) -> Detections:
    boxes, scores, labels = record
    return Detections(
        image,
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int64),
    )
