"""``Int8Detector``: mixed into stock classes, layers dropped, head outputs passed on."""

import pytest
import torch
from mmengine.hub import get_config
from torch import nn

from mmclipq.apis import build_detector, quantize
from mmclipq.detector import DenseOutputs, Int8Detector, captured_layers, to_int8
from mmclipq.graph import ir


@pytest.fixture
def retinanet():
    torch.manual_seed(0)
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.merge_from_dict({'model.bbox_head.stacked_convs': 1, 'model.bbox_head.num_classes': 3})
    return build_detector(cfg.model, random=True)


def test_captured_layers_are_what_no_island_needs():
    call = ir.FloatCall('n', ir.FLOAT, 'module', 'neck.norm', (ir.Ref('x'),))
    weight = ir.FloatCall('w', ir.FLOAT, 'parameter', 'scale.weight')
    graph = ir.Int8Graph((ir.Input('x', ir.FLOAT), call, weight), ir.Ref('n'), {})
    called = ['a', 'neck.norm', 'neck', 'a', 'scale', 'neck.n']
    assert captured_layers([graph], called) == ['a', 'neck.n']


def test_dense_outputs_are_the_features_and_carry_the_head():
    values, codes = torch.rand(1, 2, 3, 4), torch.arange(-4, 4, dtype=torch.int8).view(1, 2, 2, 2)
    outputs = DenseOutputs.pack({'features': (codes, values), 'head': 'raw'}, (3,))
    assert len(outputs) == 2
    assert outputs.head == outputs[:1].head == 'raw'
    assert outputs[1] is outputs[-1] is values
    assert torch.equal(outputs[0], codes.float() / 16)
    assert outputs[0] is outputs[0]
    assert [len(part) for part in (outputs[:1], outputs[1:], outputs[5:])] == [1, 1, 0]
    assert outputs[:1].maps[0] is codes
    assert torch.equal(outputs[:1][0], codes.float() / 16)
    with pytest.raises(IndexError):
        outputs[2]
    assert len(list(outputs)) == 2
    assert len(DenseOutputs.pack({'head': 3})) == 0
    assert DenseOutputs.pack({'features': ()}).head is None


def test_detector_becomes_int8_in_place(retinanet):
    stock, stock_head = type(retinanet), type(retinanet.bbox_head)
    retinanet.train()
    quantized = quantize(retinanet, [torch.randn(1, 3, 64, 64)])
    # Running the stock layers on the same image stays possible until the conversion.
    detector = to_int8(retinanet, quantized)
    assert detector is retinanet
    assert isinstance(detector, Int8Detector)
    assert isinstance(detector, stock)
    assert isinstance(detector.bbox_head, stock_head)
    assert type(detector).__name__ == f'Int8{stock.__name__}'
    assert not any(module.training for module in detector.modules())
    assert not [m for m in detector.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    assert 'computed by the integer graph' in repr(detector)
    image = torch.randn(2, 3, 64, 96)
    features = detector.extract_feat(image)
    found, wanted = detector.bbox_head(features), detector.int8_backend.run(image)['head']
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(ours) == 5
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_head_outside_the_graph_runs_on_dequantized_features(retinanet):
    original = type(retinanet.bbox_head).forward

    def forward(features):
        assert features[0].isfinite().all()
        return original(retinanet.bbox_head, features)

    retinanet.bbox_head.forward = forward
    quantized = quantize(retinanet, [torch.randn(1, 3, 64, 64)])
    assert quantized.head is None
    assert quantized.left['dense head'].startswith('bbox_head')
    # Its course depends on data, so each of its layers is a graph of its own.
    assert 'bbox_head.retina_cls' in [part.path for part in quantized.modules]
    assert all(part.path.startswith('bbox_head.') for part in quantized.modules)
    detector = to_int8(retinanet, quantized)
    image = torch.randn(1, 3, 64, 64)
    features = detector.extract_feat(image)
    assert features.head is None
    assert [tuple(f.shape[2:]) for f in features] == [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    wanted = detector.int8_backend.run(image)['features']
    assert all(torch.equal(a, b) for a, b in zip(features, wanted, strict=True))
    assert not hasattr(detector, 'int8_levels')
    with torch.no_grad():
        scores, _ = detector.bbox_head(features)
    assert scores[0].shape == (1, 27, 8, 8)
