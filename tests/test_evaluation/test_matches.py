"""AP from matched boxes: pycocotools' own figures, and images that count several times."""

import contextlib
import io

import numpy as np
import pytest
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools.cocoeval import COCOeval

from mmclipq.evaluation.coco import MatchedBoxes, ground_truth
from mmclipq.evaluation.evaluate import evaluate
from mmclipq.evaluation.interval import average_precision, weighted_ap
from mmclipq.evaluation.matches import Cell, Curve, Matches

CLASSES = ('cat', 'dog', 'absent', 'never found')
STATS = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')


def make_infos(images: int, rng: np.random.Generator) -> list[dict]:
    """Objects of all sizes; some are to be ignored."""
    infos = []
    for index in range(images):
        instances = []
        for _ in range(rng.poisson(4)):
            x, y = rng.uniform(0, 200, 2)
            w, h = np.exp(rng.uniform(2, 5.3, 2))
            label = int(rng.choice([0, 1, 3], p=[0.6, 0.3, 0.1]))
            ignored = int(rng.random() < 0.1)
            instances.append(
                {'bbox': [x, y, x + w, y + h], 'bbox_label': label, 'ignore_flag': ignored}
            )
        infos.append({'img_id': 7 * index, 'height': 400, 'width': 400, 'instances': instances})
    return infos


def make_detections(infos: list[dict], rng: np.random.Generator, decimals: int) -> list[dict]:
    """Shaken objects, some twice, and boxes on nothing; ``decimals`` of the scores make ties."""
    samples = []
    for info in infos:
        boxes, labels = [], []
        for instance in info['instances']:
            for _ in range(rng.integers(0, 3) if instance['bbox_label'] != 3 else 0):
                boxes.append(instance['bbox'] + rng.normal(0, 6, 4))
                labels.append(instance['bbox_label'])
        for _ in range(rng.poisson(2)):
            x, y, w, h = rng.uniform(5, 200, 4)
            boxes.append([x, y, x + w, y + h])
            labels.append(rng.integers(0, 3))
        found = InstanceData(
            bboxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array(labels, int),
            scores=rng.random(len(boxes)).round(decimals),
        )
        samples.append({'img_id': info['img_id'], 'found': found})
    return samples


def coco_eval(infos: list[dict], samples: list[dict]) -> COCOeval:
    """pycocotools' evaluation, on its own."""
    truth = ground_truth(infos, CLASSES)
    detections = [
        {
            'image_id': sample['img_id'],
            'bbox': [x1, y1, x2 - x1, y2 - y1],
            'score': score,
            'category_id': label,
        }
        for sample in samples
        for (x1, y1, x2, y2), score, label in zip(
            *(getattr(sample['found'], f).tolist() for f in ('bboxes', 'scores', 'labels')),
            strict=True,
        )
    ]
    evaluation = COCOeval(truth, truth.loadRes(detections), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


@pytest.fixture(autouse=True)
def _quiet():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope='module')
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('decimals', [8, 1], ids=['all-scores-differ', 'ties'])
def test_precision_is_that_of_pycocotools_to_the_last_digit(rng, decimals):
    infos = make_infos(40, rng)
    evaluation = coco_eval(infos, make_detections(infos, rng, decimals))
    evaluation.summarize()
    matches = Matches.from_coco(evaluation, CLASSES)
    for area in range(len(matches.areas)):
        found = matches.precision(area)
        assert np.array_equal(found, evaluation.eval['precision'][..., area, -1])
    found = average_precision(matches)
    assert [found[name] for name in STATS] == evaluation.stats[:6].tolist()
    assert np.isnan(found['AP of absent'])
    assert found['AP of never found'] == 0
    weighted = weighted_ap(matches, np.ones((1, 40)))
    assert weighted.keys() == found.keys()
    assert [values[0] for values in weighted.values()] == pytest.approx(
        list(found.values()), abs=1e-15, nan_ok=True
    )


def test_an_image_that_counts_thrice_is_three_copies(rng):
    infos = make_infos(12, rng)
    samples = make_detections(infos, rng, 8)
    matches = Matches.from_coco(coco_eval(infos, samples), CLASSES)
    weights = np.random.default_rng(1).integers(0, 4, (5, 12))
    for row in weights:
        copies, detections = [], []
        for index in np.repeat(np.arange(12), row):
            copies.append({**infos[index], 'img_id': len(copies)})
            detections.append({**samples[index], 'img_id': len(detections)})
        evaluation = coco_eval(copies, detections)
        for area in range(len(matches.areas)):
            wanted = evaluation.eval['precision'][..., area, -1]
            for k, cells in enumerate(matches.cells):
                found = Curve(cells[area], matches.recalls).precision(row[None])[:, 0]
                assert np.array_equal(np.nan_to_num(found, nan=-1), wanted[..., k])


def area_under_curve(cell: Cell, index: int, weights: np.ndarray) -> float:
    """Area under the largest precision from each recall on, at one threshold."""
    weight = weights[cell.image]
    hits = weight * cell.hit[index]
    precision = hits.cumsum() / np.maximum((weight * cell.counted[index]).cumsum(), 1e-12)
    largest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((largest * hits).sum() / (weights @ cell.positives))


def test_influence_is_the_derivative_of_ap(rng):
    infos = make_infos(60, rng)
    matches = Matches.from_coco(coco_eval(infos, make_detections(infos, rng, 8)), CLASSES)
    for area in range(len(matches.areas)):
        found = matches.influence(area)
        assert np.nan_to_num(found).sum(-1) == pytest.approx(np.zeros(found.shape[:2]), abs=1e-9)
        for cells, slopes in zip(matches.cells, found, strict=True):
            for index in (0, 9) if cells[area].positives.any() else ():
                direction = rng.normal(size=60)
                here, up, down = (
                    area_under_curve(cells[area], index, 1 + step * direction)
                    for step in (0, 1e-6, -1e-6)
                )
                # Where two precisions are equal there are two slopes.
                ends = sorted([(up - here) / 1e-6, (here - down) / 1e-6])
                slope = slopes[index] @ direction / 60
                assert ends[0] - 1e-6 <= slope <= ends[1] + 1e-6


def test_metric_gives_the_config_metrics_ap(cfg, model):
    """On a data set with annotations in a file, and from the data set alone."""
    result = evaluate(model, cfg, matched=True)
    dataset = Runner.build_dataloader(cfg.test_dataloader, seed=0).dataset
    assert result.matches.images == tuple(dataset.get_data_info(i)['img_id'] for i in range(6))
    assert result.matches.classes == dataset.metainfo['classes']
    assert round(average_precision(result.matches)['AP'], 3) == result.ap
    alone = MatchedBoxes.beside(Evaluator([]), dataset)
    assert alone.truth.getImgIds() == list(result.matches.images)


def test_detector_that_finds_nothing(rng):
    infos = make_infos(5, rng)
    metric = MatchedBoxes(ground_truth(infos, CLASSES))
    metric.dataset_meta = {'classes': CLASSES}
    nothing = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    metric.compute_metrics([(info['img_id'], *nothing) for info in infos])
    assert average_precision(metric.matches)['AP'] == 0
