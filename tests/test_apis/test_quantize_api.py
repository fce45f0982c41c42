"""Quantize, save, load: identical codes and predictions; a sentence for every bad input."""

import copy

import pytest
import torch
from mmdet.models.detectors import YOLOV3, FasterRCNN, RetinaNet
from mmengine.hub import get_config

from mmclipq import Int8Detector
from mmclipq.apis import build_detector, load_int8, quantize, save_int8
from mmclipq.apis.calibration_data import config_batches
from mmclipq.apis.quantize_model import cannot_be_negative
from mmclipq.detector import to_int8
from mmclipq.errors import ClipQError
from mmclipq.graph.artifact import load_artifact, save_artifact


@pytest.fixture
def batches(cfg):
    return list(config_batches(cfg, 4))


@pytest.fixture
def saved(cfg, float_model, batches, tmp_path):
    """The int8 detector in memory, and the file of the same graph."""
    quantized = quantize(float_model, copy.deepcopy(batches))
    path = tmp_path / 'digits.clipq'
    meta = {'classes': tuple('0123456789'), 'palette': [(1, 2, 3)] * 10, 'other': object()}
    save_int8(path, float_model, quantized, cfg, meta)
    memory = to_int8(float_model, quantized)
    return memory, path


def boxes(results):
    return [
        (r.pred_instances.bboxes, r.pred_instances.scores, r.pred_instances.labels) for r in results
    ]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(boxes(found), boxes(wanted), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def predict(model, batch):
    with torch.no_grad():
        return model.test_step(copy.deepcopy(batch))


def test_file_and_memory_give_the_same_codes_and_boxes(saved, batches):
    memory, path = saved
    loaded = load_int8(path)
    for batch in batches:
        image = memory.data_preprocessor(copy.deepcopy(batch), False)['inputs']
        found, wanted = loaded.int8_backend.codes(image), memory.int8_backend.codes(image)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        results = predict(memory, batch)
        assert len(results[0].pred_instances) > 0
        assert_same(predict(loaded, batch), results)


def test_loaded_detector_is_stock_and_more(saved, cfg):
    _, path = saved
    loaded = load_int8(path)
    assert isinstance(loaded, Int8Detector)
    assert isinstance(loaded, YOLOV3)
    assert isinstance(loaded.bbox_head, build_detector(cfg.model).bbox_head.__class__)
    assert type(loaded).__name__ == 'Int8YOLOV3'
    assert type(loaded) is type(load_int8(path))
    assert not any(module.training for module in loaded.modules())
    assert loaded.dataset_meta == {'classes': tuple('0123456789'), 'palette': [(1, 2, 3)] * 10}
    assert loaded.cfg.test_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline
    # No float weights of what the graph computes remain.
    assert not list(loaded.parameters())


def test_reading_and_writing_gives_the_same_file(intact, tmp_path):
    again = tmp_path / 'again.clipq'
    save_artifact(again, load_artifact(intact))
    assert again.read_bytes() == intact.read_bytes()


def test_float_detector_is_unchanged(float_model, batches):
    float_model.eval()
    before = {key: value.clone() for key, value in float_model.state_dict().items()}
    identities = {key: id(value) for key, value in float_model.named_parameters()}
    wanted = [predict(float_model, batch) for batch in batches]
    float_model.train()
    modes = [module.training for module in float_model.modules()]
    quantize(float_model, copy.deepcopy(batches))
    assert [module.training for module in float_model.modules()] == modes
    assert {key: id(value) for key, value in float_model.named_parameters()} == identities
    after = float_model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    float_model.eval()
    for batch, results in zip(batches, wanted, strict=True):
        assert_same(predict(float_model, batch), results)


def test_quantizing_twice_gives_the_same_graph(float_model, batches):
    first = quantize(float_model, copy.deepcopy(batches)).graph
    second = quantize(float_model, copy.deepcopy(batches)).graph
    assert first.nodes == second.nodes
    assert all(torch.equal(first.constants[k], second.constants[k]) for k in first.constants)


def test_empty_predictions(saved, batches):
    memory, path = saved
    memory.bbox_head.test_cfg.score_thr = memory.bbox_head.test_cfg.conf_thr = 2.0
    (result,) = predict(memory, batches[0])
    assert result.pred_instances.bboxes.shape == (0, 4)


def test_calibrates_on_tensors_too(float_model, batches):
    images = [float_model.data_preprocessor(copy.deepcopy(b), False)['inputs'] for b in batches]
    found, wanted = quantize(float_model, images), quantize(float_model, copy.deepcopy(batches))
    assert found.graph.nodes == wanted.graph.nodes


def test_no_images(float_model):
    with pytest.raises(ClipQError, match='calibration: found no images'):
        quantize(float_model, [])


@pytest.mark.parametrize('name', ['backbone.conv1.conv', 'bbox_head.convs_pred.2'])
def test_nan_weights_name_the_layer(float_model, batches, name):
    float_model.get_submodule(name).weight.data[0, 0] = float('nan')
    with pytest.raises(ClipQError, match=rf'{name}\.weight: found \d+ NaN'):
        quantize(float_model, batches)


LIGHT = {
    RetinaNet: (
        'retinanet/retinanet_r18_fpn_1x_coco.py',
        {'model.bbox_head.stacked_convs': 1, 'model.bbox_head.num_classes': 3},
    ),
    FasterRCNN: (
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {
            'model.backbone.depth': 18,
            'model.neck.in_channels': [64, 128, 256, 512],
            'model.roi_head.bbox_head.fc_out_channels': 64,
            'model.roi_head.bbox_head.num_classes': 3,
            'model.test_cfg.rpn.max_per_img': 20,
            'model.test_cfg.rcnn.score_thr': 0.0,
        },
    ),
}


@pytest.mark.parametrize('kind', LIGHT)
def test_detectors_with_pyramids(kind, batches, tmp_path):
    """Feature pyramids, islands and the RoI half survive the file."""
    name, changes = LIGHT[kind]
    cfg = get_config(f'mmdet::{name}')
    cfg.merge_from_dict(changes)
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and 'retina_cls' in str(module):
                module.weight.normal_(0, 0.1)
    if kind is RetinaNet:
        torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)
    quantized = quantize(model, copy.deepcopy(batches[:2]))
    assert (quantized.head == 'rpn_head') == (kind is FasterRCNN)
    assert len(quantized.boxes) == (kind is FasterRCNN)
    path = tmp_path / 'light.clipq'
    save_int8(path, model, quantized, cfg, {})
    memory = to_int8(model, quantized)
    loaded = load_int8(path)
    assert isinstance(loaded, (Int8Detector, kind))
    wanted = predict(memory, batches[3])
    assert len(wanted[0].pred_instances) > 0
    assert_same(predict(loaded, batches[3]), wanted)
    assert_same(predict(load_int8(path, backend='simulated'), batches[3]), wanted)


@pytest.mark.parametrize(
    ('settings', 'wanted'),
    [
        (dict(mean=[0, 0, 0], std=[255, 255, 255]), True),
        (dict(mean=[-1, 0, 0], std=[1, 1, 1]), True),
        (dict(mean=[0, 0, 0.5], std=[1, 1, 1]), False),
        (dict(mean=[0, 0, 0], std=[1, 1, 1], pad_value=-1), False),
        (dict(), True),
        (dict(pad_value=-1), False),
    ],
)
def test_sign_of_the_images(settings, wanted):
    from mmdet.models import DetDataPreprocessor

    assert cannot_be_negative(DetDataPreprocessor(**settings)) is wanted
