"""How far one detector's detections are from another one's, as a smooth figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..coco import Detections

_FAR = 1e6


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``(N, 4)`` and ``(M, 4)``, ``(N, M)``."""
    # A detector that is far off may give boxes that are no numbers.
    first, second = (np.nan_to_num(b, posinf=_FAR, neginf=-_FAR) for b in (first, second))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), -1)
    areas = [np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), -1) for b in (first, second)]
    return inner / np.maximum(areas[0][:, None] + areas[1][None] - inner, 1e-9)


def image_distance(found: Detections, wanted: Detections) -> float:
    """Sum over one image's detections, each as far off as its score.

    Detections of a class are paired by their overlap, the largest first. A pair counts the
    difference of its scores, and the share by which its boxes do not overlap of the wanted score;
    one that has no partner counts its score.
    """
    total = float(found.scores.sum() + wanted.scores.sum())
    for label in np.intersect1d(found.labels, wanted.labels):
        here, there = found.labels == label, wanted.labels == label
        shares = overlaps(found.boxes[here], wanted.boxes[there])
        scores, goals = found.scores[here], wanted.scores[there]
        rows, columns = np.nonzero(shares)
        free = [np.ones(len(scores), bool), np.ones(len(goals), bool)]
        for place in np.argsort(-shares[rows, columns], kind='stable'):
            row, column = rows[place], columns[place]
            if free[0][row] and free[1][column]:
                free[0][row] = free[1][column] = False
                score, goal = float(scores[row]), float(goals[column])
                apart = abs(score - goal) + goal * (1 - float(shares[row, column]))
                total += min(apart, score + goal) - score - goal
    return total


def distance(found: Sequence[Detections], wanted: Sequence[Detections]) -> float:
    """How far detections on some images are from those wanted, as a share of their scores.

    Zero if they are the same, one if nothing is found, more if much is found that is not wanted.
    """
    whole = sum(float(one.scores.sum()) for one in wanted)
    apart = sum(image_distance(a, b) for a, b in zip(found, wanted, strict=True))
    return apart / max(whole, 1e-9)
