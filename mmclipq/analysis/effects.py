"""What one layer's int8 does to the detections, with every other layer in float.

Alone in int8, and not alone in float: what a layer does by itself does not depend on how good or
bad the others are, so a bad one stands out of a detector with many mild ones, and the noise of a
figure is that of float.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from ..evaluation.coco import Detections, ground_truth
from ..evaluation.interval import Difference, ap_differences, average_precision
from ..evaluation.matches import Matches
from ..evaluation.tuning.state import Progress
from .images import AnalysedImages
from .int8_layers import Int8Layers


def shown_from(found: Sequence[Detections], objects: int) -> float:
    """Score from which on a detector shows as many boxes as there are objects.

    Infinity where it finds none.
    """
    scores = np.sort(np.concatenate([*(item.scores for item in found), []]))[::-1]
    return float(scores[min(max(objects, 1), len(scores)) - 1]) if len(scores) else math.inf


def as_objects(found: Sequence[Detections], images: AnalysedImages, least: float) -> COCO:
    """Detections with a score of at least ``least`` as if they were the objects in the images."""
    infos = []
    for item in found:
        known = images.truth.imgs[item.image]
        infos.append({
            'img_id': item.image,
            'height': known['height'],
            'width': known['width'],
            'instances': [
                {'bbox': box, 'bbox_label': label}
                for box, score, label in zip(item.boxes, item.scores, item.labels, strict=True)
                if score >= least
            ],
        })  # fmt: skip
    return ground_truth(infos, images.classes)


def agreement_lost(
    layers: Int8Layers,
    images: AnalysedImages,
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """How much less a detector agrees with float when one layer alone is int8.

    The cheap measure of a layer's effect. The float detector's best boxes, as many as there are
    objects in the images, stand for the objects; AP of the float detector itself is then close to
    1, and what it loses with one layer in int8 is the result. Every box that int8 moves lowers it,
    where AP on a few images goes up as often as down: it says how much a layer changes, not whether
    for the worse.

    Args:
        layers: The float detector's layers; it is afterwards as it was.
        images: A few images.
        names: The layers to measure, by default all.
        progress: Where results are kept.

    Returns:
        AP lost by layer, from about 0 to 1; NaN where float finds nothing.
    """
    found = images.detect(layers.model).detections
    least = shown_from(found, sum(len(images.objects(image)) for image in images.ids))
    wanted = as_objects(found, images, least)

    def agreement(found: Sequence[Detections]) -> float:
        return average_precision(images.match(found, wanted, sizes=False))['AP']

    progress = progress or Progress()
    own = agreement(found)
    lost = {}
    for name in tqdm(list(layers.names if names is None else names), 'layers', unit='layer'):
        key = f'agreement {name}'
        if key not in progress:
            with layers.rounding([name]):
                progress[key] = own - agreement(images.detect(layers.model).detections)
        lost[name] = progress[key]
    return lost


def ap_alone(
    layers: Int8Layers,
    images: AnalysedImages,
    names: Iterable[str],
    matches: Matches,
    progress: Progress | None = None,
) -> dict[str, Difference]:
    """AP with one layer alone in int8 against float, by layer, with the paired interval.

    Args:
        layers: The float detector's layers; it is afterwards as it was.
        images: The images.
        names: The layers to measure.
        matches: The float detector's detections in the same images, matched.
        progress: Where results are kept.
    """
    progress = progress or Progress()
    every = matches.areas[:1]
    cells = tuple(row[:1] for row in matches.cells)
    whole = dataclasses.replace(matches, areas=every, cells=cells)
    alone = {}
    for name in tqdm(list(names), 'AP of suspects', unit='layer'):
        key = f'ap {name}'
        if key not in progress:
            with layers.rounding([name]):
                found = images.detect(layers.model).detections
            difference = ap_differences(whole, images.match(found, sizes=False))[0]
            progress[key] = dataclasses.asdict(difference)
        alone[name] = Difference(**progress[key])
    return alone


def suspects_first(lost: dict[str, float], output: dict[str, float]) -> list[str]:
    """Layers by agreement lost, the most first; ties, and what is unknown, by the output's dB."""

    def rank(name: str) -> tuple[float, float]:
        loss, decibels = lost[name], output[name]
        return -(0 if math.isnan(loss) else loss), math.inf if math.isnan(decibels) else decibels

    return sorted(lost, key=rank)
