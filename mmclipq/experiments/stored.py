"""Matches of a measurement in a file, and the six figures that the paper prints from them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.interval import average_precision
from ..evaluation.matches import Cell, Matches
from ..graph.writing import write_atomically
from .definitions import METRICS

_FIELDS = ('image', 'hit', 'counted', 'positives')


def save_matches(matches: Matches, path: Path) -> None:
    """Write ``matches`` as a ``.npz`` file, whole or not at all, without pickle."""
    arrays: dict[str, Any] = {
        'images': np.array([str(image) for image in matches.images]),
        'classes': np.array(matches.classes),
        'thresholds': matches.thresholds,
        'recalls': matches.recalls,
        'areas': np.array(matches.areas),
    }
    for k, row in enumerate(matches.cells):
        for a, cell in enumerate(row):
            arrays |= {f'{k}.{a}.{name}': getattr(cell, name) for name in _FIELDS}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def load_matches(path: Path) -> Matches:
    """What :func:`save_matches` wrote; identifiers of images are texts."""
    with np.load(path, allow_pickle=False) as found:
        classes, areas = found['classes'].tolist(), found['areas'].tolist()
        cells = tuple(
            tuple(Cell(*(found[f'{k}.{a}.{name}'] for name in _FIELDS)) for a in range(len(areas)))
            for k in range(len(classes))
        )
        return Matches(
            tuple(found['images'].tolist()),
            tuple(classes),
            found['thresholds'],
            found['recalls'],
            tuple(areas),
            cells,
        )


def average_recall(matches: Matches, detections: int) -> float:
    """COCO's AR with the best ``detections`` of each class and image, NaN without objects."""
    recalls = []
    for row in matches.cells:
        cell = row[0]
        total = cell.positives.sum()
        if not total:
            continue
        # Detections lie by score, so the rank within an image is how many of it came before.
        order = np.argsort(cell.image, kind='stable')
        image = cell.image[order]
        first = np.searchsorted(image, image, side='left')
        rank = np.empty(len(order), int)
        rank[order] = np.arange(len(order)) - first
        recalls.append(cell.hit[:, rank < detections].sum(1) / total)
    return float(np.mean(recalls)) if recalls else float('nan')


def six_figures(matches: Matches) -> tuple[float, ...]:
    """AP, AP50, AP75, and AR with 1, 10 and 100 detections."""
    precision = average_precision(matches)
    nothing = float('nan')
    found = [precision.get(name, nothing) for name in METRICS[:3]]
    return (*found, *(average_recall(matches, count) for count in (1, 10, 100)))
