"""A metric that keeps which detection found which object, whatever the format of the data set."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmdet.evaluation.metrics import CocoMetric
from mmengine.evaluator import BaseMetric, Evaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .matches import Matches


def _index(dataset: Mapping[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def ground_truth(infos: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> COCO:
    """The objects of a data set, from what ``dataset.get_data_info`` returns for each image.

    Objects to be ignored count as COCO's crowds do.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for info in infos:
        images.append({'id': info['img_id'], 'height': info['height'], 'width': info['width']})
        for instance in info['instances']:
            x1, y1, x2, y2 = map(float, instance['bbox'])
            annotations.append({
                'id': len(annotations) + 1,  # pycocotools takes 0 for no match
                'image_id': info['img_id'],
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': (x2 - x1) * (y2 - y1),
                'iscrowd': int(instance.get('ignore_flag', 0)),
                'category_id': int(instance['bbox_label']),
            })  # fmt: skip
    categories = [{'id': index, 'name': name} for index, name in enumerate(classes)]
    return _index({'images': images, 'annotations': annotations, 'categories': categories})


class Detections(NamedTuple):
    """What a detector found in one image: boxes ``(N, 4)`` in its pixels, scores, labels."""

    image: Any
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> Detections:
        """Of a data sample with predictions, or the same as a dict."""
        found: Any = sample.get('pred_instances')
        fields = (found[name].cpu().numpy() for name in ('bboxes', 'scores', 'labels'))
        return cls(sample.get('img_id'), *fields)


class MatchedBoxes(BaseMetric):
    """Matches boxes with the ground truth as COCO's evaluation does; reports no figure itself.

    Stands beside the metrics of a config in the same evaluator, so that one test run gives both.

    Args:
        truth: The ground truth.
        thresholds: IoU thresholds, by default COCO's ten.
        images: Identifiers of the images that count, by default all.
        sizes: Whether to match within COCO's ranges of areas, too.

    Attributes:
        matches: The result once the evaluator has ended, on the main process; None before.
        found: What was found then: image, boxes, scores and labels.
    """

    def __init__(
        self,
        truth: COCO,
        thresholds: Sequence[float] | None = None,
        images: Sequence[Any] | None = None,
        sizes: bool = True,
    ) -> None:
        super().__init__(collect_device='cpu', prefix='matched')
        self.truth, self.thresholds = truth, thresholds
        self.images, self.sizes = images, sizes
        self.matches: Matches | None = None
        self.found: list[Detections] = []

    @classmethod
    def beside(cls, evaluator: Evaluator, dataset: Any) -> MatchedBoxes:
        """Added to ``evaluator``, with the ground truth of its COCO metric.

        Where it has none, or one that reads the objects from the data samples, the ground truth is
        that of the data set.
        """
        found = [metric for metric in evaluator.metrics if isinstance(metric, CocoMetric)]
        truth = next((m._coco_api for m in found if m._coco_api is not None), None)
        if truth is None:
            infos = (dataset.get_data_info(index) for index in range(len(dataset)))
            truth = ground_truth(infos, dataset.metainfo['classes'])
        metric = cls(truth, np.atleast_1d(found[0].iou_thrs).tolist() if found else None)
        metric.dataset_meta = dataset.metainfo
        evaluator.metrics.append(metric)
        return metric

    def result(self) -> Matches:
        """:attr:`matches`, once the evaluator has ended, on the main process."""
        assert self.matches is not None
        return self.matches

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        for sample in data_samples:
            self.results.append(Detections.of(sample))

    def compute_metrics(self, results: list) -> dict[str, float]:
        categories = self.truth.getCatIds(catNms=self.dataset_meta['classes'])
        self.found = results
        detections = [
            {
                'image_id': image,
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'score': score,
                'category_id': categories[label],
            }
            for image, *fields in results
            for (x1, y1, x2, y2), score, label in zip(*(f.tolist() for f in fields), strict=True)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            found = (
                self.truth.loadRes(detections)
                if detections
                else _index({**self.truth.dataset, 'annotations': []})
            )
            evaluation = COCOeval(self.truth, found, 'bbox')
            evaluation.params.catIds = categories
            if self.thresholds is not None:
                evaluation.params.iouThrs = np.asarray(self.thresholds)
            if self.images is not None:
                evaluation.params.imgIds = list(self.images)
            if not self.sizes:
                evaluation.params.areaRng = evaluation.params.areaRng[:1]
                evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.evaluate()
        names = [self.truth.cats[category]['name'] for category in evaluation.params.catIds]
        self.matches = Matches.from_coco(evaluation, names)
        return {}
