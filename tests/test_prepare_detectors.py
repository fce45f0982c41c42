"""prepare_model on stock MMDetection detectors: prediction layers, sharing, keys, reversal."""

from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from mmclipq.apis import build_detector
from mmclipq.attention import PROJECTIONS, Projection
from mmclipq.layers import ClipMixin
from mmclipq.prepare import find_weight_ranges, prepare_model, ranges_state, restore_model

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
LEVELS = range(3)
PREDICTIONS = {
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': [f'bbox_head.convs_pred.{i}' for i in LEVELS],
    'retinanet/retinanet_r18_fpn_1x_coco.py': ['bbox_head.retina_cls', 'bbox_head.retina_reg'],
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': [
        'rpn_head.rpn_cls',
        'rpn_head.rpn_reg',
        'roi_head.bbox_head.fc_cls',
        'roi_head.bbox_head.fc_reg',
    ],
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': [
        'rpn_head.rpn_cls',
        'rpn_head.rpn_reg',
        *(f'roi_head.bbox_head.{i}.fc_{kind}' for i in LEVELS for kind in ('cls', 'reg')),
    ],
    'ssd/ssd300_coco.py': [
        f'bbox_head.{kind}_convs.{i}.0' for kind in ('cls', 'reg') for i in range(6)
    ],
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py': [
        f'bbox_head.{kind}_convs.{i}.1' for kind in ('cls', 'reg') for i in range(6)
    ],
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': [
        f'bbox_head.conv_{kind}' for kind in ('cls', 'reg', 'centerness')
    ],
    'atss/atss_r50_fpn_1x_coco.py': [
        f'bbox_head.atss_{kind}' for kind in ('cls', 'reg', 'centerness')
    ],
    'yolox/yolox_tiny_8xb8-300e_coco.py': [
        f'bbox_head.multi_level_conv_{kind}.{i}' for kind in ('cls', 'reg', 'obj') for i in LEVELS
    ],
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': [
        f'bbox_head.rtm_{kind}.{i}' for kind in ('cls', 'reg') for i in LEVELS
    ],
}


@pytest.fixture(autouse=True)
def _default_scope():
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def stock(name: str):
    return build_detector(Config.fromfile(CONFIGS / name).model)


@pytest.mark.parametrize('name', PREDICTIONS)
def test_last_layer_means_exactly_the_prediction_layers(name):
    model = stock(name)
    prepare_model(model, input_range=8, last_layer=dict(input_range=16))
    last = [layer for layer, (exponent, _) in ranges_state(model).items() if exponent == 4]
    assert sorted(last) == sorted(PREDICTIONS[name])


@pytest.mark.parametrize(
    ('name', 'first'),
    [
        ('retinanet/retinanet_r18_fpn_1x_coco.py', 'backbone.conv1'),
        ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', 'backbone.conv1.conv'),
        ('yolox/yolox_tiny_8xb8-300e_coco.py', 'backbone.stem.conv.conv'),
    ],
)
def test_first_layer_is_the_one_that_sees_the_image(name, first):
    model = stock(name)
    report = prepare_model(model, first_layer=dict(skip=True))
    assert report.left == {first: 'skipped by a rule'}


@pytest.mark.parametrize(
    'name',
    [
        'retinanet/retinanet_r18_fpn_1x_coco.py',
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'detr/detr_r50_8xb2-150e_coco.py',
    ],
)
def test_keys_parameters_sharing_and_reversal(name):
    model = stock(name)
    keys = list(model.state_dict())
    parameters = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    modules = [id(m) for _, m in model.named_modules(remove_duplicate=False)]
    before = [type(m) for m in model.modules()]
    report = prepare_model(model)
    clipped = [m for m in model.modules() if isinstance(m, ClipMixin)]
    assert len(clipped) == len(report.clipped) == len({id(m) for m in clipped})
    assert list(model.state_dict()) == keys
    assert [id(p) for _, p in model.named_parameters(remove_duplicate=False)] == parameters
    # Beside them stand the projections of attention, which have no parameters of their own.
    now = [
        (name, id(module))
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, Projection)
    ]
    assert now == list(zip(names, modules, strict=True))
    model.load_state_dict(stock(name).state_dict(), strict=True)
    restore_model(model)
    assert [type(m) for m in model.modules()] == before


def test_rtmdet_shares_its_head_convolutions_between_levels():
    model = stock('rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    report = prepare_model(model)
    towers = model.bbox_head.cls_convs
    assert towers[0][0].conv is towers[1][0].conv is towers[2][0].conv
    assert isinstance(towers[2][0].conv, ClipMixin)
    assert 'bbox_head.cls_convs.0.0.conv' in report.clipped
    assert 'bbox_head.cls_convs.1.0.conv' not in report.clipped


def test_attention_projections_of_detr_are_clipped():
    report = prepare_model(stock('detr/detr_r50_8xb2-150e_coco.py'))
    for layer in (*PROJECTIONS, 'out_proj'):
        names = [name for name in report.clipped if name.endswith(f'attn.{layer}')]
        assert len(names) == 6 + 6 * 2
    assert not [name for name in report.left if 'attn' in name]


def test_deformable_layers_are_left_and_their_zero_offsets_can_learn():
    config = Config.fromfile(CONFIGS / 'dcnv2' / 'faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py')
    init_default_scope('mmdet')
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model.backbone)
    report = prepare_model(model, weight_range='auto')
    assert len(report.left) == 4 + 6 + 3
    assert all('learned offsets' in reason for reason in report.left.values())
    find_weight_ranges(model)
    still_open = [name for name, (_, exponent) in ranges_state(model).items() if exponent is None]
    assert still_open == [f'{name}.conv_offset' for name in report.left]


def test_a_prepared_retinanet_computes_the_same_while_ranges_are_open():
    model = stock('retinanet/retinanet_r18_fpn_1x_coco.py').eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
        x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        wanted = [level for branch in model(x) for level in branch]
        prepare_model(model)
        found = [level for branch in model(x) for level in branch]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert len(found) == 10
