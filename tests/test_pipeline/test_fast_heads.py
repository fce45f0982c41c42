"""Boxes of promising places alone: those that MMDetection's own code makes of the whole maps."""

import copy
import sys
import threading

import pytest
import torch
from dense_heads import DENSE, head_of, metas, model_config, outputs_of, predicted, same
from mmdet.models.dense_heads import RetinaHead
from mmdet.structures import DetDataSample
from mmengine.config import Config

from mmclipq.apis import build_detector
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline import options, rules
from mmclipq.pipeline.heads import FastBoxHead, FastDenseHead
from mmclipq.pipeline.switch import SWITCH, use_quick_pipeline

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')


@pytest.fixture
def stable(monkeypatch):
    """Lets PyTorch's sort keep the order of equal scores, in mmcv's suppression, too. What it does
    by itself depends on how many others are sorted with them."""
    sort = torch.Tensor.sort

    def sorted_stably(self, *args, **options):
        return sort(self, **({'dim': args[0]} if args else {}), **options, stable=True)

    monkeypatch.setattr(torch.Tensor, 'sort', sorted_stably)
    operators = sys.modules['mmcv.ops.nms'].ext_module
    suppress = operators.nms

    def suppressed_stably(boxes, scores, **options):
        order = scores.sort(descending=True)[1]
        return order[suppress(boxes[order], -torch.arange(len(order)).float(), **options)]

    monkeypatch.setattr(operators, 'nms', suppressed_stably)


def switched(head):
    use_quick_pipeline(head)
    assert isinstance(head, FastDenseHead)
    return head


@pytest.mark.parametrize('name', DENSE)
def test_boxes_scores_labels_and_order_are_the_heads_own(name, stable):
    head, size = head_of(model_config(DENSE[name])), 192
    kinds = outputs_of(name, head, size)
    wanted = predicted(head, kinds, size)
    found = predicted(switched(head), kinds, size)
    assert len(wanted[0]) > 20
    assert same(found, wanted)


@pytest.mark.parametrize('name', ['YOLOv3', 'YOLOX', 'RetinaNet', 'RPN'])
def test_ties(name, stable):
    head, size = head_of(model_config(DENSE[name])), 192
    kinds = tuple([x.round() for x in kind] for kind in outputs_of(name, head, size))
    wanted = predicted(head, kinds, size)
    assert len(wanted[0].scores.unique()) < len(wanted[0])
    assert same(predicted(switched(head), kinds, size), wanted)


@pytest.mark.parametrize('name', ['YOLOv3', 'YOLOX', 'FCOS', 'SSDLite', 'RPN'])
@pytest.mark.parametrize('level', [-60.0, 60.0])
def test_no_promising_places_and_nothing_else(name, level, stable):
    head, size = head_of(model_config(DENSE[name])), 96
    kinds = outputs_of(name, head, size)
    kinds[0][:] = [x * 0.01 + level for x in kinds[0]]
    wanted = predicted(head, kinds, size)
    assert same(predicted(switched(head), kinds, size), wanted)


@pytest.mark.parametrize('name', ['YOLOv3', 'YOLOX', 'FCOS', 'RPN'])
def test_images_of_a_batch_are_each_their_own(name, stable):
    head, size = head_of(model_config(DENSE[name])), 160
    kinds = outputs_of(name, head, size, batch=3)
    alone = [
        predicted(head, tuple([x[i : i + 1] for x in kind] for kind in kinds), size)[0]
        for i in range(3)
    ]
    assert same(predicted(switched(head), kinds, size), alone)


@pytest.mark.parametrize('name', ['RetinaNet', 'YOLOX'])
def test_scores_differ_in_their_last_bit_at_most_where_pytorch_splits_its_work(name):
    head, size = head_of(model_config(DENSE[name])), 160
    kinds = outputs_of(name, head, size, batch=2)
    wanted = predicted(head, kinds, size)
    found = predicted(switched(head), kinds, size)
    for f, w in zip(found, wanted, strict=True):
        assert torch.equal(f.labels, w.labels)
        assert torch.allclose(f.bboxes, w.bboxes, rtol=1e-6, atol=0)
        assert torch.allclose(f.scores, w.scores, rtol=2.5e-7, atol=0)


def test_a_threshold_of_the_config_is_the_one_that_counts(stable):
    head = head_of(model_config(DENSE['RetinaNet']))
    kinds = outputs_of('RetinaNet', head, 192)
    head.test_cfg.score_thr = 0.4
    wanted = predicted(head, kinds, 192)
    assert same(predicted(switched(head), kinds, 192), wanted)
    other = Config(dict(head.test_cfg, score_thr=0.97))
    wanted = predicted(head, kinds, 192, cfg=other)
    assert 0 < len(wanted[0]) < 100
    head.test_cfg.score_thr = 0.97  # changed afterwards
    assert same(predicted(head, kinds, 192), wanted)
    use_quick_pipeline(head, on=False)
    assert same(predicted(head, kinds, 192, cfg=other), wanted)


@pytest.mark.parametrize('by_steps', [True, False])
def test_a_loosened_rule_would_be_seen(by_steps, stable, monkeypatch):
    """The comparison above fails where a place is lost."""
    head = head_of(model_config(DENSE['RetinaNet']))
    kinds = outputs_of('RetinaNet', head, 192)
    wanted = predicted(head, kinds, 192)
    monkeypatch.setattr(options if by_steps else rules, 'least_logit', lambda score: 5.0)
    switched(head)
    if not by_steps:
        vars(head)['fast_decoder'] = None
    assert not same(predicted(head, kinds, 192), wanted)


@pytest.mark.parametrize('name', DENSE)
def test_places_alone_without_compiled_steps(name, stable):
    head, size = head_of(model_config(DENSE[name])), 160
    kinds = outputs_of(name, head, size)
    wanted = predicted(head, kinds, size)
    vars(switched(head))['fast_decoder'] = None
    assert same(predicted(head, kinds, size), wanted)


def test_threads_choose_their_own_places(stable):
    head, size = switched(head_of(model_config(DENSE['FCOS']))), 128
    inputs = [outputs_of('FCOS', head, size, seed=seed) for seed in range(4)]
    alone = [predicted(head, kinds, size) for kinds in inputs]
    found: dict[int, bool] = {}

    def work(number: int) -> None:
        found[number] = all(
            same(predicted(head, inputs[number], size), alone[number]) for _ in range(5)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


class OwnDecoding(RetinaHead):
    """A user's head with code of its own between maps and boxes."""

    def _predict_by_feat_single(self, *args, **kwargs):
        return super()._predict_by_feat_single(*args, **kwargs)


def test_heads_with_code_of_their_own_keep_it():
    head = head_of(model_config(DENSE['RetinaNet']))
    head.__class__ = OwnDecoding
    use_quick_pipeline(head)
    assert type(head) is OwnDecoding
    for config in ('detr_r50_8xb2-150e_coco.py', 'centernet_r18_8xb16-crop512-140e_coco.py'):
        other = build_detector(model_config(config), random=True)
        use_quick_pipeline(other)
        assert not any(isinstance(m, FastDenseHead) for m in other.modules())


def test_switches(monkeypatch):
    head = head_of(model_config(DENSE['FCOS']))
    stock, priors = type(head), head.prior_generator
    monkeypatch.setenv(SWITCH, '0')
    use_quick_pipeline(head)
    assert type(head) is stock
    monkeypatch.delenv(SWITCH)
    for _ in range(2):  # once more changes nothing
        assert isinstance(switched(head).prior_generator.stock, type(priors))
    assert type(copy.deepcopy(head)) is type(head)
    use_quick_pipeline(head, on=False)
    assert type(head) is stock
    assert head.prior_generator is priors


@pytest.fixture(scope='module')
def two_stages():
    """A stock Faster R-CNN with few classes and fresh weights."""
    cfg = model_config('faster-rcnn_r50_fpn_1x_coco.py')
    cfg.backbone.depth = 18
    cfg.neck.in_channels = [64, 128, 256, 512]
    cfg.roi_head.bbox_head.num_classes = 7
    torch.manual_seed(0)
    return build_detector(cfg, random=True).eval()


@pytest.mark.parametrize('score_thr', [0.05, 0.4, 0.9, 1.0])
def test_boxes_of_regions(score_thr, two_stages, stable):
    detector = copy.deepcopy(two_stages)
    detector.roi_head.test_cfg.score_thr = score_thr
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(300, 2, generator=generator) * 60
    rois = torch.cat([torch.zeros(300, 1), corners, corners + 30], dim=1)
    scores = torch.randn(300, 8, generator=generator) * 2 + torch.tensor([0.0] * 7 + [3])
    deltas = torch.randn(300, 28, generator=generator) * 0.3

    def predict():
        given = [rois], [scores], [deltas], metas(96), detector.roi_head.test_cfg
        return detector.roi_head.bbox_head.predict_by_feat(*given, rescale=True)

    wanted = predict()
    use_quick_pipeline(detector)
    assert isinstance(detector.roi_head.bbox_head, FastBoxHead)
    assert (len(wanted[0]) > 0) == (score_thr < 1)
    assert same(predict(), wanted)


def test_a_whole_detector_of_two_stages(two_stages, stable):
    detector = copy.deepcopy(two_stages)
    detector.roi_head.test_cfg.score_thr = 0.0
    images = torch.randn(1, 3, 96, 128)
    sample = DetDataSample(metainfo=metas(96)[0] | dict(batch_input_shape=(96, 128)))
    with torch.no_grad():
        wanted = detector.predict(images, [copy.deepcopy(sample)])[0].pred_instances
        use_quick_pipeline(detector)
        assert isinstance(detector.rpn_head, FastDenseHead)
        found = detector.predict(images, [copy.deepcopy(sample)])[0].pred_instances
    assert len(wanted) > 50
    assert same([found], [wanted])
