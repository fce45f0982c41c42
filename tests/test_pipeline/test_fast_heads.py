"""Boxes of promising places alone: those that MMDetection's own code makes of the whole maps."""

import copy
import sys
import threading

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.structures import DetDataSample
from mmengine.config import Config

from mmclipq.apis import build_detector
from mmclipq.apis.mmdet_tools import find_config
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline.heads import FastBoxHead, FastDenseHead
from mmclipq.pipeline.switch import SWITCH, use_quick_pipeline

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')

DENSE = {
    'YOLOv3': 'yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py',
    'YOLOX': 'yolox_tiny_8xb8-300e_coco.py',
    'RetinaNet': 'retinanet_r18_fpn_1x_coco.py',
    'FCOS': 'fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'atss_r50_fpn_1x_coco.py',
    'GFL': 'gfl_r50_fpn_1x_coco.py',
    'VFNet': 'vfnet_r50_fpn_1x_coco.py',
    'RTMDet': 'rtmdet_tiny_8xb32-300e_coco.py',
    'SSDLite': 'ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'FSAF': 'fsaf_r50_fpn_1x_coco.py',
    'RPN': 'rpn_r50-caffe_fpn_1x_coco.py',
}


def model_config(name: str) -> Config:
    cfg = Config.fromfile(find_config(name)).model
    cfg.backbone.init_cfg = None
    return cfg


def head_of(cfg: Config):
    """The dense head of a detector's config alone, which is all that is needed here."""
    from mmdet.registry import MODELS

    key = 'rpn_head' if cfg.type == 'FasterRCNN' or cfg.type == 'RPN' else 'bbox_head'
    own = dict(cfg[key])
    test_cfg = cfg.test_cfg.rpn if 'rpn' in cfg.test_cfg else cfg.test_cfg
    head = MODELS.build({**own, 'test_cfg': test_cfg, 'train_cfg': None}).eval()
    if not hasattr(head, 'loss_cls'):  # SSD's of mmdet 3.3 asks for it without having it
        head.loss_cls = None
    return head


STRIDES = {'YOLOv3': (32, 16, 8), 'SSDLite': (16, 32, 64, 107, 160, 320), 'RPN': (4, 8, 16, 32, 64)}
STRIDES |= dict.fromkeys(('YOLOX', 'RTMDet'), (8, 16, 32))
CHANNELS = {'YOLOv3': (96, 96, 96), 'SSDLite': (96, 1280, 512, 256, 256, 128)}
CHANNELS |= dict.fromkeys(('YOLOX', 'RTMDet'), (96, 96, 96))


def outputs_of(name: str, head, size: int, batch: int = 1, seed: int = 0) -> tuple:
    """Maps in the shapes that the head gives, with the logits of a trained one: few are high."""
    strides = STRIDES.get(name, (8, 16, 32, 64, 128))
    channels = CHANNELS.get(name, (256,) * len(strides))
    features = [
        torch.zeros(batch, c, max(1, -(-size // s)), max(1, -(-size // s)))
        for c, s in zip(channels, strides, strict=True)
    ]
    with torch.no_grad():
        shapes = head(tuple(features))
    generator = torch.Generator().manual_seed(seed)

    def logits(x):
        made = torch.randn(x.shape, generator=generator)
        return made.contiguous(memory_format=torch.channels_last)

    kinds = [[logits(x) for x in kind] for kind in shapes if kind is not None]
    lower = {'YOLOv3': 3.0, 'SSDLite': 0.0}.get(name, 4.0)
    kinds[0] = [x * 2 - lower for x in kinds[0]]
    if name == 'YOLOX':
        kinds[2] = [x * 2 - 3 for x in kinds[2]]
    if name in ('FCOS', 'VFNet', 'RTMDet'):  # distances, which forward makes positive
        kinds[1] = [x.exp() * 8 for x in kinds[1]]
    return tuple(kinds)


def metas(size: int, batch: int = 1) -> list[dict]:
    meta = dict(img_shape=(size, size - 6), ori_shape=(size * 2, size * 2), scale_factor=(0.5, 0.5))
    return [{**meta, 'img_id': number} for number in range(batch)]


def predicted(head, kinds, size, **options):
    """A copy of the maps goes in: some heads decode in place."""
    batch = len(kinds[0][0])
    with torch.no_grad():
        given = copy.deepcopy(kinds)
        return head.predict_by_feat(
            *given, batch_img_metas=metas(size, batch), rescale=True, **options
        )


def same(found, wanted) -> bool:
    return all(
        len(f) == len(w)
        and set(f.keys()) == set(w.keys())
        and all(torch.equal(f[key], w[key]) for key in set(w.keys()))
        for f, w in zip(found, wanted, strict=True)
    )


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


def test_a_loosened_rule_would_be_seen(stable, monkeypatch):
    """The comparison above fails where a place is lost."""
    from mmclipq.pipeline import rules

    head = head_of(model_config(DENSE['RetinaNet']))
    kinds = outputs_of('RetinaNet', head, 192)
    wanted = predicted(head, kinds, 192)
    monkeypatch.setattr(rules, 'least_logit', lambda score: 5.0)
    assert not same(predicted(switched(head), kinds, 192), wanted)


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
