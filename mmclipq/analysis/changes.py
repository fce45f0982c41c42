"""Which boxes int8 loses and gains, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask

from ..evaluation.coco import Detections
from .images import AnalysedImages

IOU = 0.5
"""Overlap from which on a box has found an object."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        corners: ``x1, y1, x2, y2`` in pixels, ``(N, 4)``.
        labels: Numbers of the classes, ``(N,)``.
        scores: ``(N,)``; ones for objects.
        right: Whether each one found an object, or each object is found, ``(N,)``.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class ImageChange:
    """What int8 changed in one image.

    Attributes:
        image: Its identifier.
        path: Its file.
        objects: What is to be found; ``right`` where both detectors found it.
        first, second: What float and int8 show.
        lost: Numbers of the objects that float alone found.
        gained: Numbers of the objects that int8 alone found.
    """

    image: Any
    path: str
    objects: Boxes
    first: Boxes
    second: Boxes
    lost: tuple[int, ...]
    gained: tuple[int, ...]


def find_objects(corners: np.ndarray, labels: np.ndarray, shown: Boxes) -> np.ndarray:
    """For each box shown, the best first, the number of the object that it finds, else -1.

    Args:
        corners, labels: Of the objects, ``(M, 4)`` and ``(M,)``.
        shown: Boxes in the order of their scores.
    """
    found = np.full(len(shown.labels), -1)
    if not len(labels) or not len(found):
        return found

    def sides(boxes: np.ndarray) -> np.ndarray:
        return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).astype(float)

    overlap = mask.iou(sides(shown.corners), sides(corners), [0] * len(labels))
    overlap = np.where(shown.labels[:, None] == labels[None], overlap, 0)
    for index, row in enumerate(overlap):
        best = int(row.argmax())
        if row[best] >= IOU:
            found[index] = best
            overlap[:, best] = 0
    return found


def _shown(item: Detections, least: float, corners: np.ndarray, labels: np.ndarray):
    """Boxes from a score on, the best first, and the objects that they find."""
    order = np.argsort(-item.scores, kind='stable')
    order = order[item.scores[order] >= least]
    none = np.zeros(len(order), bool)
    boxes = Boxes(item.boxes[order], item.labels[order], item.scores[order], none)
    objects = find_objects(corners, labels, boxes)
    return Boxes(boxes.corners, boxes.labels, boxes.scores, objects >= 0), set(objects) - {-1}


def changes(
    images: AnalysedImages,
    first: Sequence[Detections],
    second: Sequence[Detections],
    least: float,
) -> list[ImageChange]:
    """What int8 changed in each image.

    Args:
        images: The images.
        first, second: What float and int8 found in each of them.
        least: Score from which on a box is shown.
    """
    found = []
    for image, one, other in zip(images.ids, first, second, strict=True):
        objects = images.objects(image)
        corners = np.array([o['bbox'] for o in objects], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = np.array([images.categories.index(o['category_id']) for o in objects], int)
        (a, by_first), (b, by_second) = (
            _shown(item, least, corners, labels) for item in (one, other)
        )
        both = np.isin(np.arange(len(labels)), list(by_first & by_second))
        truth = Boxes(corners, labels, np.ones(len(labels)), both)
        lost, gained = sorted(by_first - by_second), sorted(by_second - by_first)
        found.append(
            ImageChange(image, images.path(image), truth, a, b, tuple(lost), tuple(gained))
        )
    return found


def most_changed(
    found: Sequence[ImageChange], count: int
) -> tuple[list[ImageChange], list[ImageChange]]:
    """Up to ``count`` images in which int8 lost most, and in which it gained most.

    No image is in both.
    """
    lost = sorted(found, key=lambda c: (len(c.gained) - len(c.lost), -len(c.lost)))
    losing = [change for change in lost if change.lost][:count]
    gained = sorted(found, key=lambda c: (len(c.lost) - len(c.gained), -len(c.gained)))
    taken = {id(change) for change in losing}
    gaining = [change for change in gained if change.gained and id(change) not in taken]
    return losing, gaining[:count]
