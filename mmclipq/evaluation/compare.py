"""One table of float, clipped float and int8: accuracy, size, time; and a picture of the boxes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from .._compat import as_detector
from ..errors import ClipQError
from .evaluate import Evaluation


@dataclass
class Row:
    """One line of the table; sizes in bytes, times in milliseconds per image."""

    name: str
    ap: float
    ap50: float
    size: int
    milliseconds: float

    @classmethod
    def make(cls, name: str, result: Evaluation, size: int) -> Row:
        return cls(name, result.ap, result.ap50, size, result.milliseconds)

    def as_dict(self) -> dict[str, float | int | str]:
        return asdict(self)


def weight_bytes(detector: nn.Module) -> int:
    """Bytes of the float parameters, which is what a checkpoint without optimizer holds."""
    return sum(p.numel() * p.element_size() for p in detector.parameters())


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; the first one's size is 100 %."""
    lines = [
        '| detector | AP | AP50 | size MiB | ratio | ms per image |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        lines.append(
            f'| {row.name} | {row.ap:.3f} | {row.ap50:.3f} | {row.size / 2**20:.2f} '
            f'| {row.size / rows[0].size:.2%} | {row.milliseconds:.1f} |'
        )
    return '\n'.join(lines)


def _drawn(visualizer: DetLocalVisualizer, image: np.ndarray, sample: object, title: str):
    visualizer.add_datasample(
        title, image, data_sample=sample, draw_gt=False, pred_score_thr=0.3, show=False
    )
    drawn = cv2.cvtColor(visualizer.get_image(), cv2.COLOR_RGB2BGR)
    bar = np.full((28, drawn.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, drawn])


@torch.no_grad()
def draw_side_by_side(
    detectors: Sequence[tuple[str, nn.Module]],
    cfg: Config,
    path: str | os.PathLike,
    images: int = 4,
    height: int = 360,
) -> None:
    """Write a picture with one row per image and one column per detector.

    Args:
        detectors: Title and detector of each column.
        cfg: Config whose test images are shown.
        path: PNG or JPEG file to write.
        images: Number of images, spread over the test set.
        height: Height in pixels to which each image is enlarged or reduced.
    """
    init_default_scope('mmdet')
    dataset = Runner.build_dataloader(cfg.test_dataloader, seed=0).dataset
    visualizer = DetLocalVisualizer(line_width=2)
    visualizer.dataset_meta = dataset.metainfo
    rows = []
    for index in np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int):
        item = dataset[int(index)]
        file = item['data_samples'].img_path
        read = cv2.imread(file)
        if read is None:
            raise ClipQError(f'{file}: found no readable image, wanted one OpenCV can decode')
        image = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
        scale = height / image.shape[0]
        shown = cv2.resize(image, None, fx=scale, fy=scale)
        columns = []
        for title, detector in detectors:
            batch = {'inputs': [item['inputs']], 'data_samples': [item['data_samples']]}
            (sample,) = as_detector(detector).test_step(batch)
            instances = sample.pred_instances
            corner = instances.bboxes.new_tensor([shown.shape[1], shown.shape[0]] * 2)
            # A box that leaves the image would make the drawing smaller.
            instances.bboxes = (instances.bboxes * scale).clamp(corner * 0, corner - 1)
            columns.append(_drawn(visualizer, shown, sample, title))
        rows.append(np.hstack(columns))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.vstack(rows)):
        raise OSError(f'{path}: found no way to write it, wanted a .png or .jpg path')
