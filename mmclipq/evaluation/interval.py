"""Differences of AP between two detectors on the same images, with their interval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from .matches import Matches, check_same_images

LEVEL = 0.95
RESAMPLES = 1000
LEAST_ERROR = 0.5
"""Share of the standard error below which no draw's own error is believed."""
UNSEEN = 'no difference that these images can show'


@dataclass(frozen=True)
class Difference:
    """AP of two detectors, and the interval of the second one's minus the first one's.

    Attributes:
        name: What of: ``AP``, ``AP50``, ``AP small``, ``AP of CLASS``, ...
        first, second: Each detector's, NaN where the images hold no such object.
        low, high: Ends of the interval.
    """

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def visible(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """What the images say about the second detector."""
        if not self.visible:
            return UNSEEN
        return 'better' if self.low > 0 else 'worse'

    def __str__(self) -> str:
        return (
            f'{self.name} {self.second:.3f} against {self.first:.3f}: {self.difference:+.3f}, '
            f'95 % interval {self.low:+.3f} to {self.high:+.3f}: {self.verdict}'
        )

    def as_dict(self) -> dict[str, float | str]:
        return {**asdict(self), 'difference': self.difference, 'verdict': self.verdict}


def difference_table(
    title: str, rows: Iterable[tuple[str, Difference]], first: str = 'float', second: str = 'int8'
) -> str:
    """Named differences as a Markdown table; ``first`` and ``second`` head the columns of AP."""
    lines = [
        f'| {title} | {first} | {second} | difference | 95 % interval | |',
        '|---|---|---|---|---|---|',
    ]
    for name, row in rows:
        lines.append(
            f'| {name} | {row.first:.3f} | {row.second:.3f} | {row.difference:+.3f} '
            f'| {row.low:+.3f} to {row.high:+.3f} | {row.verdict} |'
        )
    return '\n'.join(lines)


@dataclass(frozen=True)
class _Kind:
    """One kind of AP: a range of areas, some of the thresholds, one class or all."""

    name: str
    area: int
    thresholds: np.ndarray
    category: int | None = None

    def exact(self, precision: np.ndarray) -> float:
        """From ``(T, P, K)``, in pycocotools' order of summation; NaN if no class has objects."""
        chosen = precision[self.thresholds]
        if self.category is not None:
            chosen = chosen[..., self.category]
        known = chosen[chosen > -1]
        return float(known.mean()) if known.size else float('nan')

    def mean(self, ap: np.ndarray) -> np.ndarray:
        """From ``(K, T, R)`` to ``(R,)``, NaN where no class has objects."""
        chosen = ap[:, self.thresholds]
        if self.category is not None:
            chosen = chosen[self.category][None]
        known = ~np.isnan(chosen)
        count = known.sum((0, 1))
        total = np.where(known, chosen, 0).sum((0, 1))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _kinds(matches: Matches) -> Iterator[_Kind]:
    every = np.ones(len(matches.thresholds), bool)
    yield _Kind('AP', 0, every)
    for threshold in (0.5, 0.75):
        chosen = np.isclose(matches.thresholds, threshold)
        if chosen.any():
            yield _Kind(f'AP{100 * threshold:.0f}', 0, chosen)
    for area, name in list(enumerate(matches.areas))[1:]:
        yield _Kind(f'AP {name}', area, every)
    for index, name in enumerate(matches.classes):
        yield _Kind(f'AP of {name}', 0, every, index)


def average_precision(matches: Matches) -> dict[str, float]:
    """Every kind of AP by its name, to the last digit as pycocotools computes it; NaN if unknown.

    The names are those of :func:`ap_differences`.
    """
    precision = [matches.precision(area) for area in range(len(matches.areas))]
    return {kind.name: kind.exact(precision[kind.area]) for kind in _kinds(matches)}


def image_weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn, ``(resamples, images)``, with replacement."""
    even = np.full(images, 1 / images)
    return np.random.default_rng(seed).multinomial(images, even, size=resamples).astype(float)


def weighted_ap(
    matches: Matches, weights: np.ndarray, bar: tqdm | None = None
) -> dict[str, np.ndarray]:
    """Every kind of AP by its name, ``(R,)``; images count ``weights`` ``(R, I)`` times."""
    areas = []
    for area in range(len(matches.areas)):
        cells = []
        for ap in matches.resampled(weights, area):
            cells.append(ap)
            if bar is not None:
                bar.update()
        areas.append(np.stack(cells))
    return {kind.name: kind.mean(areas[kind.area]) for kind in _kinds(matches)}


def _influences(matches: Matches) -> dict[str, np.ndarray]:
    """How every kind of AP moves with each image, ``(I,)``."""
    areas = [matches.influence(area) for area in range(len(matches.areas))]
    return {kind.name: kind.mean(areas[kind.area]) for kind in _kinds(matches)}


def _interval(
    difference: float, drawn: np.ndarray, influence: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """Ends of the interval: the outer ones of percentiles and studentized bootstrap.

    Percentiles are too narrow where few images make the difference, and studentized ends do not
    follow the bias that AP has on few images.

    Args:
        difference: What was observed.
        drawn: What the resamples gave, ``(R,)``.
        influence: How the difference moves with each image, ``(I,)``.
        weights: How often each image was drawn, ``(R, I)``.
    """
    images = len(influence)
    mean = weights @ influence / images
    variance = weights @ influence**2 / images - mean**2
    error = influence.std() / np.sqrt(images - 1)
    errors = np.sqrt(np.maximum(variance, 0) / (images - 1))
    if not error > 0:
        return difference, difference
    # Draws without the few images that matter would promise a precision that nobody has.
    known = ~np.isnan(drawn)
    ratios = (drawn - difference)[known] / np.maximum(errors, error * LEAST_ERROR)[known]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    (low, high), (least, most) = np.quantile(ratios, tails), np.quantile(drawn[known], tails)
    return (
        float(min(least, difference - high * error)),
        float(max(most, difference - low * error)),
    )


def ap_differences(
    first: Matches, second: Matches, resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """AP of the second detector against the first one's, with 95 % intervals.

    The interval is that of a paired bootstrap over images: both detectors are looked at on the same
    images, drawn with replacement. It reaches as far as the percentiles of the differences drawn
    and as the studentized interval, which measures each draw in its own standard error. It says
    what other images of the same kind would show; it knows nothing of other seeds of training or
    calibration. How often it holds the truth was measured: docs/accuracy.md.

    Args:
        first, second: Detections of both on the same images.
        resamples: Number of draws.
        seed: Of the draws; the same seed gives the same interval.

    Returns:
        ``AP`` first, then AP at IoU 0.5 and 0.75, by size, and of each class.

    Raises:
        ClipQError: if the two were not evaluated on the same images and classes, or on only one.
    """
    return mean_differences([(first, second)], resamples, seed)


def mean_differences(
    pairs: Sequence[tuple[Matches, Matches]], resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """The mean over several pairs of detectors, such as seeds of training, see
    :func:`ap_differences`: the images are drawn once for all pairs.

    Raises:
        ClipQError: if not all were evaluated on the same images and classes.
    """
    distinct = {id(matches): matches for pair in pairs for matches in pair}
    for matches in distinct.values():
        check_same_images(pairs[0][0], matches)
    weights = image_weights(len(pairs[0][0].images), resamples, seed)
    cells = sum(len(m.classes) * len(m.areas) for m in distinct.values())
    with tqdm(total=cells, desc='interval', unit='curve', delay=2) as bar:
        drawn = {key: weighted_ap(m, weights, bar) for key, m in distinct.items()}
    influences = {key: _influences(m) for key, m in distinct.items()}
    exact = {key: average_precision(m) for key, m in distinct.items()}

    def mean(found: Mapping[int, Mapping[str, Any]], side: int, name: str) -> Any:
        return sum(found[id(pair[side])][name] for pair in pairs) / len(pairs)

    differences = []
    for name in exact[id(pairs[0][0])]:
        one, other = mean(exact, 0, name), mean(exact, 1, name)
        if np.isnan(one):
            continue
        moved = mean(influences, 1, name) - mean(influences, 0, name)
        apart = mean(drawn, 1, name) - mean(drawn, 0, name)
        ends = _interval(other - one, apart, moved, weights)
        differences.append(Difference(name, one, other, *ends))
    return differences
