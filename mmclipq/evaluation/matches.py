"""Detections matched with the ground truth image by image, and the AP of any weights of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ClipQError

_BLOCK = 1 << 20
"""Values of one array of a block of resamples: what a core's cache holds."""


@dataclass(frozen=True)
class Cell:
    """Detections of one class and range of areas, the best first, ties in the order of images.

    Attributes:
        image: Position of the image, ``(N,)``.
        hit: Whether the detection found an object, for each IoU threshold, ``(T, N)`` bool.
        counted: Whether it counts at all, rather than lying on what is to be ignored, ``(T, N)``.
        positives: Number of objects to find in each image, ``(I,)``.
    """

    image: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class Matches:
    """One detector's detections on a test set, matched as COCO's evaluation does it.

    Attributes:
        images: Identifiers of the images, in the order of the cells' positions.
        classes: Names of the classes.
        thresholds: IoU thresholds ``(T,)``.
        recalls: Recall thresholds at which precision is read, ``(P,)``.
        areas: Names of the ranges of areas; the first holds all objects.
        cells: By class and range: ``cells[k][a]``.
    """

    images: tuple
    classes: tuple[str, ...]
    thresholds: np.ndarray
    recalls: np.ndarray
    areas: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]

    @classmethod
    def from_coco(cls, evaluation, classes: Sequence[str], detections: int = 100) -> Matches:
        """From a ``pycocotools`` ``COCOeval`` whose ``evaluate()`` has run.

        Args:
            evaluation: The evaluation.
            classes: Names of its categories, in its order.
            detections: How many detections of a class count in one image.
        """
        params = evaluation.params
        count = len(params.imgIds)
        found = iter(
            evaluation.evalImgs[start : start + count]
            for start in range(0, len(evaluation.evalImgs), count)
        )
        cells = tuple(
            tuple(_cell(next(found), len(params.iouThrs), detections) for _ in params.areaRng)
            for _ in params.catIds
        )
        return cls(
            tuple(params.imgIds),
            tuple(classes),
            np.array(params.iouThrs),
            np.array(params.recThrs),
            tuple(params.areaRngLbl),
            cells,
        )

    def precision(self, area: int = 0) -> np.ndarray:
        """Precision as ``COCOeval.accumulate`` gives it: ``(T, P, K)``, -1 for absent classes."""
        weights = np.ones((1, len(self.images)))
        curves = [Curve(row[area], self.recalls).precision(weights)[:, 0] for row in self.cells]
        return np.nan_to_num(np.stack(curves, -1), nan=-1.0)

    def influence(self, area: int = 0) -> np.ndarray:
        """How AP moves with each image, ``(K, T, I)``, see :meth:`Curve.influence`."""
        return np.stack([Curve(row[area], self.recalls).influence() for row in self.cells])

    def resampled(self, weights: np.ndarray, area: int = 0) -> Iterator[np.ndarray]:
        """AP of each class, ``(T, R)``, on images that count ``weights`` ``(R, I)`` times each.

        NaN where the weighted images hold no object of the class.
        """
        for row in self.cells:
            curve = Curve(row[area], self.recalls)
            size = max(1, _BLOCK // max(1, len(curve.image)))
            blocks = (weights[start : start + size] for start in range(0, len(weights), size))
            yield np.concatenate([curve.precision(block).mean(-1) for block in blocks], 1)


def _cell(images: list[dict | None], thresholds: int, detections: int) -> Cell:
    """One class and range of ``COCOeval.evalImgs``."""
    kept = [(index, found) for index, found in enumerate(images) if found is not None]
    positives = np.zeros(len(images))
    for index, found in kept:
        positives[index] = np.count_nonzero(np.asarray(found['gtIgnore']) == 0)
    scores = [np.asarray(found['dtScores'][:detections], float) for _, found in kept]
    image = np.repeat([index for index, _ in kept], [len(s) for s in scores]).astype(np.int64)
    empty = np.zeros((thresholds, 0))
    matched = np.hstack([empty, *(f['dtMatches'][:, :detections] for _, f in kept)]) != 0
    ignored = np.hstack([empty, *(f['dtIgnore'][:, :detections] for _, f in kept)]) != 0
    order = np.argsort(-np.concatenate([*scores, []]), kind='mergesort')
    matched, counted = matched[:, order], ~ignored[:, order]
    return Cell(image[order], matched & counted, counted, positives)


class Curve:
    """Precision over recall of one class, for images that count any number of times.

    An image that counts twice is the same as two copies of it: between two hits precision can only
    fall, and what is read at a recall is the largest precision from there on. So nothing but the
    hits is looked at, each with the number of detections up to it.

    Args:
        cell: The class's detections.
        recalls: Recall thresholds ``(P,)``.
    """

    def __init__(self, cell: Cell, recalls: np.ndarray) -> None:
        # Behind the last hit nothing changes.
        length = int(np.flatnonzero(cell.hit.any(0)).max(initial=-1)) + 1
        hit, counted = cell.hit[:, :length], cell.counted[:, :length]
        self.image = torch.from_numpy(np.ascontiguousarray(cell.image[:length]))
        self.positives = torch.from_numpy(np.asarray(cell.positives, float))
        self.recalls = torch.from_numpy(np.asarray(recalls, float))
        self.hits = [torch.from_numpy(np.flatnonzero(row)) for row in hit]
        # Nearly the same detections count at all thresholds: one sum for all, and corrections.
        self.usual = torch.from_numpy(np.array(counted[0]))
        self.changes = [torch.from_numpy(np.flatnonzero(row != counted[0])) for row in counted]

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """Precision at each recall, ``(T, R, P)``, NaN without objects.

        Args:
            weights: How often each image counts, ``(R, I)``.
        """
        given = torch.as_tensor(weights, dtype=torch.float64)
        positives = (given @ self.positives)[:, None]
        recalls = self.recalls.expand(len(given), -1).contiguous()
        curves = []
        for _, true, envelope in self._counted(given):
            # Beyond the last hit precision is zero.
            envelope = torch.cat([envelope, envelope.new_zeros(len(given), 1)], 1)
            curves.append(envelope.gather(1, torch.searchsorted(true / positives, recalls)))
        return torch.where(positives > 0, torch.stack(curves), torch.nan).numpy()

    @torch.enable_grad()
    def influence(self) -> np.ndarray:
        """How AP moves with the weight of each image, ``(T, I)``, NaN without objects.

        The derivative of the area under the whole curve, which is AP but for the few recalls at
        which that reads it, times the number of images. It sums up to zero over the images.
        """
        images = len(self.positives)
        given = torch.ones(1, images, dtype=torch.float64, requires_grad=True)
        positives = given @ self.positives
        if not positives > 0:
            return np.full((len(self.hits), images), np.nan)
        gradients = []
        for step, _, envelope in self._counted(given):
            area = (envelope * step).sum() / positives
            (gradient,) = torch.autograd.grad(area, given, retain_graph=True)
            gradients.append(gradient[0] * images)
        return torch.stack(gradients).numpy()

    def _counted(self, given: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each threshold, at each hit ``(R, H)``: its weight, that of all hits so far, and the
        largest precision from there on."""
        weight = given.index_select(1, self.image)
        total = (weight if self.usual.all() else weight * self.usual).cumsum(1)
        for hits, changes in zip(self.hits, self.changes, strict=True):
            step = weight.index_select(1, hits)
            true, found = step.cumsum(1), total.index_select(1, hits)
            if len(changes):
                sign = 1 - 2 * self.usual[changes].double()
                more = (weight.index_select(1, changes) * sign).cumsum(1)
                more = torch.cat([more.new_zeros(len(more), 1), more], 1)
                places = torch.searchsorted(changes, hits, right=True)
                found = found + more.index_select(1, places)
            # The smallest number keeps a first hit of weight 0 from dividing by zero.
            curve = true / (found + np.spacing(1))
            yield step, true, curve.flip(1).cummax(1).values.flip(1) if len(hits) else curve


def check_same_images(first: Matches, second: Matches) -> None:
    """Return if two detectors were matched on the same images, at least two, and classes.

    Raises:
        ClipQError: naming what differs.
    """
    if len(first.images) < 2:
        raise ClipQError(f'found {len(first.images)} image, wanted at least two to compare on')
    for what in ('images', 'classes', 'areas'):
        a, b = getattr(first, what), getattr(second, what)
        if a != b:
            raise ClipQError(
                f'found results on other {what} ({len(a)} and {len(b)}), wanted two detectors '
                f'evaluated on the same {what}'
            )
