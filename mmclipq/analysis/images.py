"""A config's test images, read once for many looks, with their objects."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from tqdm import tqdm

from ..apis.calibration_data import read_image
from ..errors import ClipQError
from ..evaluation.coco import Detections, MatchedBoxes
from ..evaluation.matches import Matches
from ..lowering.capture import evaluating

KEPT_BYTES = 1 << 29
"""Of images that stay in memory from one look to the next."""


@dataclass
class Found:
    """What a detector found in some images.

    Attributes:
        detections: Of each image.
        milliseconds: Median time per image of ``test_step``, preprocessing and NMS included.
    """

    detections: list[Detections] = field(default_factory=list)
    milliseconds: float = float('nan')


class AnalysedImages:
    """Images of a config's test set, read by its own pipeline.

    Args:
        cfg: The config.
        count: How many, spread over the test set; all by default.

    Attributes:
        classes: Names of the classes.
        truth: All objects of the test set.
        numbers: The images' numbers in the data set.
        config: What of the config they and the detector depend on, as text.

    Raises:
        ClipQError: if there is no test set, or no object in it.
    """

    def __init__(self, cfg: Config, count: int | None = None) -> None:
        init_default_scope('mmdet')
        if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
            raise ClipQError(
                f'{cfg.filename}: found no test_dataloader or no test_evaluator, wanted both to '
                'measure AP with'
            )
        try:
            loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
            evaluator = Evaluator(cfg.test_evaluator)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ClipQError(
                f'{cfg.filename}: found no test images ({error}), wanted the data set of '
                'test_dataloader; check data_root'
            ) from error
        self.config = f'{cfg.model} {cfg.test_dataloader} {cfg.test_evaluator}'
        self.dataset = loader.dataset
        self.batch_size = int(cfg.test_dataloader.get('batch_size', 1))
        metric = MatchedBoxes.beside(evaluator, self.dataset)
        self.truth: COCO = metric.truth
        self.thresholds = metric.thresholds
        self.classes = tuple(self.dataset.metainfo['classes'])
        total = len(self.dataset)
        chosen = total if count is None else min(count, total)
        self.numbers = np.linspace(0, total - 1, chosen).round().astype(int).tolist()
        self.categories = self.truth.getCatIds(catNms=self.classes)
        self.ids = [self.dataset.get_data_info(number)['img_id'] for number in self.numbers]
        if not sum(map(len, map(self.objects, self.ids))):
            raise ClipQError(
                f'{cfg.filename}: found no object in {len(self.ids)} test images, wanted '
                'annotated ones to measure AP with'
            )
        self._kept: dict[int, Any] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def sample(self, count: int) -> AnalysedImages:
        """``count`` of these images, spread over them; both share what they keep in memory."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
        part = copy.copy(self)
        part.numbers = [self.numbers[index] for index in chosen]
        part.ids = [self.ids[index] for index in chosen]
        return part

    def objects(self, image: Any) -> list[dict[str, Any]]:
        """The annotations of an image that count, in COCO's form."""
        known = set(self.categories)
        return [
            annotation
            for annotation in self.truth.imgToAnns.get(image, [])
            if not annotation.get('iscrowd') and annotation['category_id'] in known
        ]

    def path(self, image: Any) -> str:
        """File of an image."""
        number = self.numbers[self.ids.index(image)]
        return self.dataset.get_data_info(number)['img_path']

    def batches(self) -> Iterator[Any]:
        """The images as a dataloader would give them; each batch may be changed."""
        for start in range(0, len(self.numbers), self.batch_size):
            items = [self._item(n) for n in self.numbers[start : start + self.batch_size]]
            yield copy.deepcopy(pseudo_collate(items))

    def _item(self, number: int) -> Any:
        if number in self._kept:
            return self._kept[number]
        item = read_image(self.dataset, number)
        size = item['inputs'].numel() * item['inputs'].element_size()
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[number] = item
            self._kept_bytes += size
        return item

    @torch.no_grad()
    def detect(self, detector: Any, title: str = '') -> Found:
        """What ``detector`` finds in them; with a ``title``, behind a progress bar."""
        found, times = Found(), []
        total = -(-len(self) // self.batch_size)
        with evaluating(detector):
            for batch in tqdm(
                self.batches(), title, total, unit='batch', disable=not title, leave=bool(title)
            ):
                start = time.perf_counter()
                samples = detector.test_step(batch)
                times.append((time.perf_counter() - start) / len(samples))
                found.detections += map(Detections.of, samples)
        found.milliseconds = float(np.median(times)) * 1000
        return found

    def match(
        self, found: Sequence[Detections], truth: COCO | None = None, sizes: bool = True
    ) -> Matches:
        """Detections matched with the objects, or with those of another ``truth``.

        Args:
            found: Of every image.
            truth: Other objects, whose categories are numbered like the classes.
            sizes: Whether also within COCO's ranges of areas.
        """
        metric = MatchedBoxes(truth or self.truth, self.thresholds, self.ids, sizes)
        metric.dataset_meta = self.dataset.metainfo
        metric.compute_metrics(list(found))
        assert metric.matches is not None
        return metric.matches
