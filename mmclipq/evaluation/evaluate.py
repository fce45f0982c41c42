"""Runs a detector over a config's test set with the config's own evaluator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from .._compat import as_detector
from ..apis.unreadable import refusals_told, unreadable_images_named
from .coco import MatchedBoxes
from .matches import Matches

_AP = ('bbox_mAP', 'mAP')
_AP50 = ('bbox_mAP_50', 'AP50')


@dataclass
class Evaluation:
    """Result of one detector on one test set.

    Attributes:
        metrics: What the evaluator returned.
        milliseconds: Median time per image of ``test_step``, preprocessing and NMS included.
        images: Number of images.
        matches: Which detection found which object, if that was asked for.
    """

    metrics: Mapping[str, float]
    milliseconds: float
    images: int
    matches: Matches | None = None

    def matched(self) -> Matches:
        """:attr:`matches` of an evaluation that was asked for them."""
        assert self.matches is not None
        return self.matches

    def _metric(self, names: tuple[str, ...]) -> float:
        for name in names:
            for key, value in self.metrics.items():
                if key.split('/')[-1] == name:
                    return float(value)
        return float('nan')

    @property
    def ap(self) -> float:
        """AP averaged over the IoU thresholds of the evaluator, NaN if it has none."""
        return self._metric(_AP)

    @property
    def ap50(self) -> float:
        """AP at an IoU of 0.5, NaN if the evaluator does not give it."""
        return self._metric(_AP50)


@torch.no_grad()
def evaluate(
    detector: nn.Module, cfg: Config, name: str = 'evaluation', matched: bool = False
) -> Evaluation:
    """Test ``detector`` as MMEngine's test loop would, and time every image.

    Args:
        detector: Float detector or :class:`mmclipq.Int8Detector`, on the device to use.
        cfg: Config with ``test_dataloader`` and ``test_evaluator``.
        name: Shown at the progress bar.
        matched: Whether to keep which detection found which object, for intervals.

    Raises:
        ClipQError: naming an image that cannot be read, or the data set that is not there.
    """
    init_default_scope('mmdet')
    with refusals_told(str(cfg.filename)):
        loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
        evaluator = Evaluator(cfg.test_evaluator)
    boxes = MatchedBoxes.beside(evaluator, loader.dataset) if matched else None
    evaluator.dataset_meta = loader.dataset.metainfo
    detector.eval()
    times: list[float] = []
    images = 0
    with unreadable_images_named():
        for batch in tqdm(loader, desc=name, unit='batch'):
            start = time.perf_counter()
            outputs = as_detector(detector).test_step(batch)
            times.append((time.perf_counter() - start) / len(outputs))
            images += len(outputs)
            evaluator.process(data_samples=outputs, data_batch=batch)
    median = sorted(times)[len(times) // 2]
    metrics = evaluator.evaluate(images)
    return Evaluation(metrics, median * 1000, images, boxes.matches if boxes else None)
