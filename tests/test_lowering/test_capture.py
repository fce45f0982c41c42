"""Tracing stock detectors: what lies inside, what stays outside and why, modes restored."""

from collections import Counter

import pytest
import torch
from torch import nn

from mmclipq.lowering.capture import CaptureError, DensePart, capture, dense_head_name, evaluating
from mmclipq.lowering.plan import make_plan
from mmclipq.lowering.tracer import REASON
from mmclipq.prepare import prepare_model

STOCK = {
    'yolo/yolov3_d53_8xb8-320-273e_coco.py': ('bbox_head', dict(conv=75, concat=2, upsample=2)),
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': (
        'bbox_head',
        dict(conv=74, concat=2, upsample=2),
    ),
    # 53 of the backbone, 8 of the neck, 2 shared towers and predictions on 5 levels.
    'retinanet/retinanet_r50_fpn_1x_coco.py': (
        'bbox_head',
        dict(conv=53 + 8 + 5 * 10, add=2, upsample=2, max_pool=1),
    ),
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': (
        'rpn_head',
        dict(conv=53 + 8 + 5 * 3, add=3, upsample=3, max_pool=2),
    ),
    'ssd/ssd300_coco.py': ('bbox_head', dict(conv=35, max_pool=5)),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': (
        'bbox_head',
        dict(conv=53 + 8 + 5 * 11, add=2, upsample=2, max_pool=1),
    ),
    'yolox/yolox_tiny_8xb8-300e_coco.py': (
        'bbox_head',
        dict(conv=83, add=0, concat=14, upsample=2, max_pool=3),
    ),
}


def flat(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [leaf for item in items for leaf in flat(item)]


@pytest.mark.parametrize('name', STOCK)
def test_stock_detector(stock, randomise, name):
    head, kinds = STOCK[name]
    detector = randomise(stock(name)).eval()
    # SSD reads fixed level sizes out of its VGG.
    image = torch.randn(1, 3, 300, 300) if 'ssd' in name else torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = getattr(detector, head)(detector.extract_feat(image))
    prepare_model(detector)
    captured = capture(detector, image)
    assert (captured.head, captured.left_out) == (head, {})
    found = Counter(unit.kind for unit in make_plan(captured.module).units)
    assert {kind: found[kind] for kind in kinds} == kinds
    assert found['input'] == 1
    with torch.no_grad():
        result = captured.module(image)
    assert ('features' in result) == (head == 'rpn_head')
    found, wanted = flat(result['head']), flat(wanted)
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_residual_blocks_of_darknet_fuse(stock):
    detector = stock('yolo/yolov3_d53_8xb8-320-273e_coco.py')
    prepare_model(detector)
    units = make_plan(capture(detector, torch.randn(1, 3, 64, 64)).module).units
    assert sum(len(unit.operands) == 2 and unit.kind == 'conv' for unit in units) == 23
    # Each block adds after its second activation.
    assert sum(unit.options.get('residual_last', False) for unit in units) == 23
    assert not any(unit.kind == 'float' for unit in units)


class DataDependent(nn.Module):
    """Runs ``inner`` in a way that no trace can follow."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        first = x if isinstance(x, torch.Tensor) else x[0]
        return self.inner(x) if first.sum() < 1e9 else None


@pytest.mark.parametrize('part', ['backbone', 'neck'])
def test_untraceable_module_becomes_one_step(stock, part):
    detector = stock('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py').eval()
    inner = nn.Sequential(nn.Identity(), DataDependent(getattr(detector, part)))
    setattr(detector, part, inner)
    prepare_model(detector)
    captured = capture(detector, torch.randn(1, 3, 64, 96))
    assert captured.head == 'bbox_head'
    reasons = {n.target: n.meta['reason'] for n in captured.module.graph.nodes if REASON in n.meta}
    assert reasons == {
        f'{part}.1': 'DataDependent cannot be traced: a condition on data or sizes',
    }
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        found = captured.module(image)['head']
        wanted = detector.bbox_head(detector.extract_feat(image))
    assert all(torch.equal(a, b) for a, b in zip(flat(found), flat(wanted), strict=True))


def test_untraceable_head_stays_outside(stock):
    detector = stock('tood/tood_r50_fpn_1x_coco.py')
    captured = capture(detector, torch.randn(1, 3, 64, 96))
    assert captured.head is None
    assert captured.left_out['dense head'].startswith('bbox_head: TOODHead cannot be traced')
    with torch.no_grad(), evaluating(captured.module):
        outputs = captured.module(torch.randn(1, 3, 64, 64))
    assert list(outputs) == ['features']
    assert len(outputs['features']) == 5


def test_detector_with_its_own_features_is_refused(stock):
    detector = stock('detr/detr_r50_8xb2-150e_coco.py')
    with pytest.raises(CaptureError, match='DETR: found its own extract_feat'):
        capture(detector)


@pytest.mark.parametrize('fails', [False, True])
def test_training_modes_are_restored(stock, fails):
    detector = stock('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py')
    detector.train()
    detector.neck.eval()
    detector.backbone.conv1.bn.training = False
    if fails:
        detector.neck.forward = lambda features: undefined  # noqa: F821
    modes = {name: module.training for name, module in detector.named_modules()}
    assert len(set(modes.values())) == 2
    if fails:
        with pytest.raises(CaptureError):
            capture(detector, torch.randn(1, 3, 64, 64))
    else:
        assert capture(detector, torch.randn(1, 3, 64, 64)).head == 'bbox_head'
    assert {name: module.training for name, module in detector.named_modules()} == modes


def test_evaluating_restores_after_an_error():
    module = nn.Sequential(nn.Conv2d(1, 1, 1).eval(), nn.BatchNorm2d(1))
    context = evaluating(module)
    context.__enter__()
    assert not any(m.training for m in module.modules())
    assert not context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert [m.training for m in module.modules()] == [True, False, True]


def test_head_name_and_missing_head(stock):
    detector = stock('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    assert dense_head_name(detector) == 'rpn_head'
    del detector.rpn_head
    assert dense_head_name(detector) is None
    captured = capture(detector)
    assert captured.left_out == {'dense head': 'FasterRCNN has no dense head'}
    assert DensePart(detector, None).keep_features
