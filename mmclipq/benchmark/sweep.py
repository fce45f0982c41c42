"""Curves of an int8 detector on a CPU, from encoded images to boxes.

Throughput over threads and batch sizes, cost over the size of images and the number of boxes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from tqdm import tqdm

from .._compat import as_detector
from ..errors import ClipQError
from ..graph.writing import write_figure
from ..pipeline.switch import use_quick_pipeline
from .whole_way import Way, array_pipeline, ours

BATCHES = 1, 2, 4, 8, 16
SIZES = 96, 160, 224, 320, 416, 512, 640
THRESHOLDS = 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002
MOST = 1000
"""Boxes of an image where their number is what changes."""


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
        panel: Its panel.
        name: In the panel's legend.
        x, y: Points, in the units of the panel.
    """

    panel: str
    name: str
    x: list[float]
    y: list[float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


PANELS = {
    'throughput': ('images in a batch', 'images/s'),
    'size': ('height and width of the image, pixels', 'ms of an image'),
    'boxes': ('boxes of an image', 'ms for boxes of an image'),
}
"""Names of the two axes."""


@torch.no_grad()
def batch_seconds(way: Way, encoded: Sequence[bytes]) -> float:
    """Seconds from encoded images to boxes, all as one batch."""
    start = time.perf_counter()
    data = pseudo_collate([way.pipeline(mmcv.imfrombytes(content)) for content in encoded])
    detector = as_detector(way.detector)
    ready = detector.data_preprocessor(data, False)
    detector.predict(ready['inputs'], ready['data_samples'])
    return time.perf_counter() - start


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def throughput(
    way: Way, encoded: Sequence[bytes], threads: Sequence[int], rounds: int
) -> list[Curve]:
    """Images a second over the batch size, a line for each number of threads."""
    curves = []
    for count in threads:
        torch.set_num_threads(count)
        speeds = []
        for batch in tqdm(BATCHES, desc=f'batches, threads {count}', unit='size', leave=False):
            given = [encoded[i % len(encoded)] for i in range(batch)]
            batch_seconds(way, given)  # plans the graph for this shape
            seconds = _median([batch_seconds(way, given) for _ in range(rounds)])
            speeds.append(batch / seconds)
        name = f'{count} thread{"s" * (count != 1)}'
        curves.append(Curve('throughput', name, list(BATCHES), speeds))
    return curves


def _scaled(cfg: Config, size: int) -> Config:
    """``cfg`` whose test pipeline resizes to ``size``.

    Raises:
        ClipQError: if it does not resize to one scale.
    """
    cfg = copy.deepcopy(cfg)
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset', {})
        while 'pipeline' not in dataset and 'dataset' in dataset:
            dataset = dataset['dataset']
        steps = [s for s in dataset.get('pipeline', ()) if str(s['type']).endswith('Resize')]
        if steps:
            for step in steps:
                step['scale'] = (size, size)
            return cfg
    raise ClipQError(f'{cfg.filename}: found a test pipeline without Resize, wanted one')


def _stages(way: Way, encoded: Sequence[bytes], rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of the network, of boxes, and of all, over images and rounds."""
    way.run(encoded[0])
    found = [way.run(content)[0] for _ in range(rounds) for content in encoded]
    network, boxes = ([1000 * stages[name] for stages in found] for name in ('network', 'boxes'))
    return _median(network), _median(boxes), _median([1000 * sum(s.values()) for s in found])


def over_sizes(way: Way, cfg: Config, encoded: Sequence[bytes], rounds: int) -> list[Curve]:
    """Milliseconds over the size that images are resized to: the network's and all."""
    lines: dict[str, list[float]] = {'network': [], 'bytes to boxes': []}
    for size in tqdm(SIZES, desc='sizes', unit='size', leave=False):
        scaled = Way(way.detector, way.clocked, array_pipeline(_scaled(cfg, size)))
        network, _, whole = _stages(scaled, encoded, rounds)
        lines['network'].append(network)
        lines['bytes to boxes'].append(whole)
    return [Curve('size', name, list(SIZES), y) for name, y in lines.items()]


def over_boxes(way: Way, encoded: Sequence[bytes], rounds: int) -> list[Curve]:
    """Milliseconds between the network's outputs and boxes over their mean number, which a lower
    score threshold raises: with the compiled steps and with MMDetection's own code."""
    detector: Any = way.detector
    head = getattr(detector, 'roi_head', None) or detector.bbox_head
    config = head.test_cfg
    before = copy.deepcopy(dict(config))
    curves = []
    try:
        config.max_per_img = MOST
        for name, on in (('compiled', True), ("MMDetection's code", False)):
            use_quick_pipeline(detector, on)
            x, y = [], []
            for threshold in tqdm(THRESHOLDS, desc=name, unit='threshold', leave=False):
                config.score_thr = threshold
                if 'conf_thr' in config:
                    config.conf_thr = min(threshold, before['conf_thr'])
                x.append(sum(len(way.run(content)[1]) for content in encoded) / len(encoded))
                y.append(_stages(way, encoded, rounds)[1])
            curves.append(Curve('boxes', name, x, y))
    finally:
        config.update(before)
        use_quick_pipeline(detector)
    return curves


def sweep(
    path: Path, cfg: Config, encoded: Sequence[bytes], threads: Sequence[int], rounds: int
) -> list[Curve]:
    """All curves of a ``.clipq`` file; sizes and boxes with the last of ``threads``."""
    way = ours(path, array_pipeline(cfg))
    curves = throughput(way, encoded, threads, rounds)
    torch.set_num_threads(threads[-1])
    few = encoded[:4]
    return [*curves, *over_sizes(way, cfg, few, rounds), *over_boxes(way, few, rounds)]


def draw_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Draw a panel for each of :data:`PANELS`.

    Args:
        curves: From :func:`sweep`.
        path: PNG file, written whole or not at all.
        title: Above all panels.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.4 * len(PANELS), 3.6))
    for axis, (panel, (across, upwards)) in zip(axes, PANELS.items(), strict=True):
        given = [curve for curve in curves if curve.panel == panel]
        for curve, colour in zip(given, ('#c44e52', '#4c72b0', '#55a868', '#8172b3'), strict=False):
            axis.plot(curve.x, curve.y, marker='o', markersize=3, color=colour, label=curve.name)
        axis.set_xlabel(across)
        axis.set_ylabel(upwards)
        if panel == 'throughput':
            axis.set_xscale('log', base=2)
            axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    try:
        write_figure(path, figure)
    finally:
        plt.close(figure)
