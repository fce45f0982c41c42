"""Images with their objects that take no part in calibration, and AP on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..._compat import as_detector
from ...errors import ClipQError
from ...lowering.capture import evaluating
from ..coco import Detections, MatchedBoxes, ground_truth
from ..interval import average_precision
from ..matches import Matches

Predict = Callable[[Tensor, Any], Sequence[Any]]
"""From preprocessed images and data samples to data samples with predictions."""


class HeldOut:
    """Images to measure detections on.

    Args:
        model: The detector whose preprocessing they get.
        batches: One image each, as a dataloader gives them; they are kept.

    Attributes:
        batches: The images as they were read.
        infos: Ground truth as a data set gives it; None where an image has none.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.model, self.batches = model, list(batches)
        self.infos: list[dict[str, Any]] | None = []
        for index, batch in enumerate(self.batches):
            (sample,) = batch['data_samples']
            instances = sample.get('instances')
            if instances is None or self.infos is None:
                self.infos = None
                continue
            height, width = sample.ori_shape[:2]
            info = {'img_id': index, 'height': height, 'width': width}
            self.infos.append({**info, 'instances': instances})

    def of(self, indices: Sequence[int]) -> HeldOut:
        """Some of the images."""
        chosen = copy.copy(self)
        chosen.batches = [self.batches[index] for index in indices]
        if self.infos is not None:
            chosen.infos = [
                {**self.infos[index], 'img_id': new} for new, index in enumerate(indices)
            ]
        return chosen

    def __len__(self) -> int:
        return len(self.batches)

    def check(self, what: str) -> None:
        """Return if AP can be measured.

        Raises:
            ClipQError: naming ``what`` needs objects.
        """
        if len(self) < 2:
            raise ClipQError(
                f'{what}: found {len(self)} images beside those that calibrate, wanted at least '
                'two; take fewer with --calib-images'
            )
        if self.infos is None or not any(info['instances'] for info in self.infos):
            raise ClipQError(
                f'{what}: found held-out images without objects, wanted annotated ones; leave out '
                '--calib-dir'
            )

    @torch.no_grad()
    def found(
        self, predict: Predict, title: str = '', images: int | None = None
    ) -> list[Detections]:
        """Detections of ``predict`` in the first ``images``, by default in all, in order."""
        results = []
        with evaluating(self.model):
            batches = self.batches[:images]
            for index, batch in enumerate(
                tqdm(batches, desc=title, unit='image', disable=not title, leave=False)
            ):
                data = as_detector(self.model).data_preprocessor(copy.deepcopy(batch), False)
                (sample,) = predict(data['inputs'], data['data_samples'])
                results.append(Detections.of(sample)._replace(image=index))
        return results

    def matches(self, found: Sequence[Detections]) -> Matches:
        """Which detection found which object, in images that :meth:`check` has passed."""
        assert self.infos is not None
        labels = [i['bbox_label'] for info in self.infos for i in info['instances']]
        labels += [int(label) for item in found for label in item.labels]
        labels.append(self._classes() - 1)
        classes = [str(index) for index in range(max(labels) + 1)]
        metric = MatchedBoxes(ground_truth(self.infos, classes), sizes=False)
        metric.dataset_meta = {'classes': classes}
        metric.compute_metrics(list(found))
        return metric.result()

    def _classes(self) -> int:
        heads = (getattr(self.model, name, None) for name in ('bbox_head', 'roi_head'))
        numbers = [getattr(module, 'num_classes', None) for head in heads if head is not None
                   for module in head.modules()]  # fmt: skip
        return max((n for n in numbers if isinstance(n, int)), default=1)

    def ap(self, found: Sequence[Detections]) -> float:
        """AP of detections in all images, 0 to 1."""
        return average_precision(self.matches(found))['AP']
