"""Pairs of detectors whose true difference of AP is known, image by image, without any pictures.

An image holds a few objects of several classes. The first detector finds an object with a
probability that depends on how hard it is, at an IoU and with a score that do, too, and reports
false boxes beside. The second detector is the first one with noise on scores and IoUs, some objects
lost and some false boxes more, as int8 is float with noise. Images differ in how hard they are, so
boxes of one image belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmclipq.evaluation.interval import RESAMPLES, ap_differences, average_precision
from mmclipq.evaluation.matches import Cell, Matches

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Pair:
    """How the second detector differs from the first.

    Attributes:
        noise: Standard deviation of what is added to scores (as logits) and IoUs.
        lost: Share of found objects that it misses.
        gained: False boxes of each image that it has more.
        classes: Number of classes.
        objects: Mean number of objects of a class in an image.
    """

    noise: float = 0.02
    lost: float = 0.0
    gained: float = 0.0
    classes: int = 3
    objects: float = 1.5


def _cells(images, image, score, iou, positives) -> Cell:
    order = np.argsort(-score, kind='mergesort')
    hit = iou[order][None] >= THRESHOLDS[:, None]
    return Cell(image[order], hit, np.ones_like(hit), positives)


def draw(pair: Pair, images: int, rng: np.random.Generator) -> tuple[Matches, Matches]:
    """Both detectors' matched detections on new images."""
    hardness = rng.normal(0, 0.7, images)
    first, second = [], []
    for index in range(pair.classes):
        positives = rng.poisson(pair.objects * np.exp(0.5 * rng.normal(size=images)))
        image = np.repeat(np.arange(images), positives)
        ease = 1.0 - 0.3 * index - hardness[image] + rng.normal(0, 1, len(image))
        kept = ease > -0.8  # the rest is missed
        image, ease = image[kept], ease[kept]
        iou = 0.45 + 0.5 / (1 + np.exp(-ease - rng.normal(0, 0.7, len(ease))))
        score = ease + rng.normal(0, 0.6, len(ease))
        false = rng.poisson(2 * np.exp(0.5 * hardness))
        wrong = np.repeat(np.arange(images), false)
        everywhere = np.concatenate([image, wrong])
        scores = np.concatenate([score, rng.normal(-1, 1, len(wrong))])
        ious = np.concatenate([iou, np.zeros(len(wrong))])
        first.append((_cells(images, everywhere, scores, ious, positives.astype(float)),))
        stays = rng.random(len(everywhere)) >= pair.lost * (ious > 0)
        more = np.repeat(np.arange(images), rng.poisson(pair.gained, images))
        noisy = pair.noise * rng.normal(size=(2, len(everywhere)))
        second.append((
            _cells(
                images,
                np.concatenate([everywhere[stays], more]),
                np.concatenate([(scores + 5 * noisy[0])[stays], rng.normal(0, 1, len(more))]),
                np.concatenate([(ious + noisy[1] * (ious > 0))[stays], np.zeros(len(more))]),
                positives.astype(float),
            ),
        ))  # fmt: skip
    names = tuple(f'class {index}' for index in range(pair.classes))
    return tuple(
        Matches(tuple(range(images)), names, THRESHOLDS, RECALLS, ('all',), tuple(cells))
        for cells in (first, second)
    )


def true_difference(pair: Pair, images: int = 100_000) -> float:
    """AP of the second detector minus the first one's, over so many images that it stands still."""
    first, second = map(average_precision, draw(pair, images, np.random.default_rng(1)))
    return second['AP'] - first['AP']


def coverage(pair: Pair, images: int, draws: int, resamples: int = RESAMPLES) -> float:
    """Share of the intervals from fresh ``images`` that hold the true difference."""
    wanted = true_difference(pair)
    held = 0
    for index in range(draws):
        found = draw(pair, images, np.random.default_rng((2, index)))
        row = ap_differences(*found, resamples=resamples, seed=index)[0]
        held += row.low <= wanted <= row.high
    return held / draws
