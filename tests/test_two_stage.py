"""Two-stage detectors: the RoI half as integer graphs, from regions to boxes."""

import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from torch import nn

import mmclipq  # noqa: F401
from mmclipq.apis import build_detector, load_int8, quantize, save_int8
from mmclipq.backends import build_backend
from mmclipq.detector import Int8Detector, executing, plain_samples, to_int8
from mmclipq.errors import ClipQError
from mmclipq.evaluation.verify import verify
from mmclipq.graph import ir
from mmclipq.lowering.capture import CaptureError, capture, capture_boxes

SMALL = {
    'model.backbone.depth': 18,
    'model.neck.in_channels': [64, 128, 256, 512],
    'model.neck.out_channels': 32,
    'model.rpn_head.in_channels': 32,
    'model.rpn_head.feat_channels': 32,
    'model.test_cfg.rpn.nms_pre': 60,
    'model.test_cfg.rpn.max_per_img': 24,
    'model.test_cfg.rcnn.score_thr': 0.0,
    'model.test_cfg.rcnn.max_per_img': 12,
}
ONE_STAGE = {
    'model.roi_head.bbox_roi_extractor.out_channels': 32,
    'model.roi_head.bbox_head.in_channels': 32,
    'model.roi_head.bbox_head.fc_out_channels': 48,
    'model.roi_head.bbox_head.num_classes': 4,
}
SVD = {
    'model.roi_head.bbox_head.type': 'mmclipq.SVDBBoxHead',
    'model.roi_head.bbox_head.svd_rank': 8,
}
MASK = {
    'model.roi_head.mask_roi_extractor.out_channels': 32,
    'model.roi_head.mask_head.in_channels': 32,
    'model.roi_head.mask_head.num_classes': 4,
    'model.roi_head.mask_head.num_convs': 1,
}
FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
DETECTORS = {
    'faster': (FASTER, ONE_STAGE),
    'svd': (FASTER, {**ONE_STAGE, **SVD}),
    'mask': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', {**ONE_STAGE, **MASK}),
    'cascade': ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', {}),
}


def make(name):
    path, changes = DETECTORS[name]
    cfg = get_config(f'mmdet::{path}')
    cfg.merge_from_dict({**SMALL, **changes})
    if name == 'cascade':
        cfg.model.roi_head.bbox_roi_extractor.out_channels = 32
        for head in cfg.model.roi_head.bbox_head:
            head.update(in_channels=32, fc_out_channels=48, num_classes=4)
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return cfg, model


@pytest.fixture(scope='module', params=DETECTORS)
def case(request):
    cfg, model = make(request.param)
    images = [torch.randn(1, 3, 64, 96), torch.randn(2, 3, 96, 64)]
    return request.param, cfg, model, quantize(model, images)


def predict(detector, images, samples=None):
    with torch.no_grad():
        return detector.predict(images, samples or plain_samples(images), rescale=False)


def instances(samples):
    return [s.pred_instances for s in samples]


def assert_same(found, wanted):
    for ours, theirs in zip(instances(found), instances(wanted), strict=True):
        assert len(ours) == len(theirs)
        assert torch.equal(ours.bboxes, theirs.bboxes)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)


def test_every_layer_of_the_box_half_is_int8(case):
    name, _, model, quantized = case
    assert len(quantized.boxes) == (3 if name == 'cascade' else 1)
    assert not quantized.left
    modules = [part.path for part in quantized.modules]
    assert modules == (['roi_head.mask_head'] if name == 'mask' else [])
    layers = {
        path
        for path, layer in model.roi_head.named_modules(prefix='roi_head')
        if isinstance(layer, nn.Linear)
    }
    assert layers
    assert layers <= set(quantized.captured)
    assert layers == {node.name for graph in quantized.boxes for node in graph.products()}
    for graph in quantized.boxes:
        assert [type(node) for node in graph.nodes[:5]] == [ir.Input] * 5
        logits = [graph.tensors[ref.name] for ref in graph.outputs]
        assert logits == [ir.FLOAT, ir.FLOAT]


def test_levels_share_one_range_and_leave_as_codes(case):
    _, _, _, quantized = case
    kinds = [quantized.graph.tensors[ref.name] for ref in quantized.graph.outputs['features']]
    assert len(set(kinds[:4])) == 1
    assert kinds[0].is_codes
    assert not kinds[4].is_codes
    assert quantized.feature_exponents == (kinds[0].exponent,) * 4 + (None,)
    for graph in quantized.boxes:
        assert [node.type for node in graph.nodes[:4]] == kinds[:4]


def test_three_executions_of_the_same_integers(case):
    """Through RoIAlign, whose float counterpart is MMCV's operator: within one step everywhere."""
    name, _, model, quantized = case
    generator = torch.Generator().manual_seed(1)
    result = verify(model, quantized, [torch.randn(2, 3, 64, 96, generator=generator)])
    assert result.unequal == []
    stages = range(len(quantized.boxes))
    for stage in stages:
        suffix = f'_{stage}' if name == 'cascade' else ''
        aligned = f'stage {stage}: roi_head_bbox_roi_extractor{suffix}'
        assert aligned in result.names
        assert result.forced[aligned].total > 0
    for difference in result.forced.values():
        assert difference.largest <= 1
        assert difference.rate <= 2e-3
    assert not isinstance(model, Int8Detector)


def test_file_and_backends_give_the_same_boxes(case, tmp_path):
    name, cfg, model, quantized = case
    path = tmp_path / 'two.clipq'
    save_int8(path, model, quantized, cfg, {})
    detector = load_int8(path)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    wanted = predict(detector, images)
    assert all(len(found) > 0 for found in instances(wanted))
    assert_same(predict(load_int8(path, backend='simulated'), images), wanted)
    if name == 'mask':
        assert instances(wanted)[0].masks.shape[1:] == (64, 96)
    assert not [m for m in detector.roi_head.modules() if isinstance(m, nn.Linear)]


def test_int8_scores_are_close_to_float(case):
    """On the same regions, so that a difference is the arithmetic's and not the proposals'."""
    _, _, model, quantized = case
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    traced = capture(model)
    reference = build_backend('reference', quantized.graph, model)
    levels = reference.run(images)['features'][:4]
    values = [level.float() * 2.0 ** (quantized.feature_exponents[0] - 7) for level in levels]
    rois = torch.tensor([[0.0, 4, 4, 60, 50], [0, 30, 10, 90, 40], [0, 0, 0, 96, 64]])
    for graph, module in zip(quantized.boxes, traced.boxes, strict=True):
        found = build_backend('reference', graph, model).run(*levels, rois)
        with torch.no_grad():
            wanted = module(*values, rois)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.shape == theirs.shape
            assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.fixture
def detector():
    _, model = make('faster')
    quantized = quantize(model, [torch.randn(1, 3, 64, 96)])
    return to_int8(model, quantized)


def test_images_of_different_sizes_in_one_batch(detector):
    images = torch.zeros(2, 3, 96, 128)
    generator = torch.Generator().manual_seed(4)
    sizes = [(96, 100), (60, 128)]
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    samples = [
        DetDataSample(
            metainfo=dict(
                img_shape=size,
                ori_shape=size,
                scale_factor=(1.0, 1.0),
                batch_input_shape=(96, 128),
            )
        )
        for size in sizes
    ]
    found = instances(predict(detector, images, samples))
    for boxes, (height, width) in zip(found, sizes, strict=True):
        assert len(boxes) > 0
        assert boxes.bboxes[:, 2].max() <= width
        assert boxes.bboxes[:, 3].max() <= height


@pytest.mark.parametrize('empty', [(0,), (0, 1)])
def test_images_without_proposals(detector, monkeypatch, empty):
    stock = detector.rpn_head.predict

    def predict_some(*args, **kwargs):
        results = stock(*args, **kwargs)
        return [r[:0] if index in empty else r for index, r in enumerate(results)]

    monkeypatch.setattr(detector.rpn_head, 'predict', predict_some)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    counts = [len(boxes) for boxes in instances(predict(detector, images))]
    assert [count == 0 for count in counts] == [index in empty for index in range(2)]


def test_graph_runs_on_no_regions(detector):
    levels = detector.int8_backend.run(torch.randn(1, 3, 64, 96))['features'][:4]
    cls_score, bbox_pred = detector.int8_boxes[0].run(*levels, torch.zeros(0, 5))
    assert cls_score.shape == (0, 5)
    assert bbox_pred.shape == (0, 16)


def test_a_class_that_never_occurs():
    _, model = make('faster')
    head = model.roi_head.bbox_head.fc_cls
    with torch.no_grad():
        head.weight[2], head.bias[2] = 0, -100
    detector = to_int8(model, quantize(model, [torch.randn(1, 3, 64, 96)]))
    (found,) = instances(predict(detector, torch.randn(1, 3, 64, 96)))
    assert len(found) > 0
    assert 2 not in found.labels[found.scores > 1e-6]


def test_calibration_without_regions_is_refused(monkeypatch):
    _, model = make('faster')
    monkeypatch.setattr(StandardRoIHead, 'predict', lambda self, *args, **kwargs: [None])
    monkeypatch.setattr(type(model), 'add_pred_to_datasample', lambda *args: None)
    with pytest.raises(ClipQError, match='calibration: found no regions, wanted at least one'):
        quantize(model, [torch.randn(1, 3, 64, 96)])


def test_regions_stand_in_where_no_image_has_any(monkeypatch):
    _, model = make('mask')
    stock = type(model.rpn_head).predict

    def nothing(self, *args, **kwargs):
        return [found[:0] for found in stock(self, *args, **kwargs)]

    monkeypatch.setattr(type(model.rpn_head), 'predict', nothing)
    quantized = quantize(model, [torch.randn(1, 3, 64, 96), torch.randn(1, 3, 96, 64)])
    assert len(quantized.boxes) == 1
    assert [part.path for part in quantized.modules] == ['roi_head.mask_head']
    assert not [name for name, reason in quantized.left.items() if 'never called' in reason]
    detector = to_int8(model, quantized)
    assert len(instances(predict(detector, torch.randn(1, 3, 64, 96)))[0]) == 0
    monkeypatch.undo()
    assert len(instances(predict(detector, torch.randn(1, 3, 64, 96)))[0]) > 0


def test_own_way_to_boxes_is_captured_by_modules():
    _, model = make('faster')

    class OwnRoIHead(type(model.roi_head)):
        def _bbox_forward(self, x, rois):
            return super()._bbox_forward(x, rois)

    model.roi_head.__class__ = OwnRoIHead
    with pytest.raises(CaptureError, match='OwnRoIHead: found its own way from regions'):
        capture_boxes(model)
    quantized = quantize(model, [torch.randn(1, 3, 64, 96)])
    assert not quantized.boxes
    assert set(quantized.left) == {'roi_head'}
    assert [part.path for part in quantized.modules] == ['roi_head.bbox_head']
    assert quantized.feature_exponents == (None,) * 5
    (found,) = instances(predict(to_int8(model, quantized), torch.randn(1, 3, 64, 96)))
    assert len(found) > 0


def test_executing_is_undone_after_an_error():
    _, model = make('faster')
    stock = [type(m) for m in model.modules()]
    names = set(vars(model.roi_head))
    context = executing(model, 'rpn_head', None, [None])
    context.__enter__()
    assert isinstance(model, Int8Detector)
    assert not context.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert [type(m) for m in model.modules()] == stock
    assert set(vars(model.roi_head)) == names
