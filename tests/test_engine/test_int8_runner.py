"""Int8Runner: evaluates a .clipq file or a float checkpoint, also with test-time augmentation."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, RUNNERS
from mmengine.runner import Runner

from mmclipq.apis import build_detector, load_int8
from mmclipq.apis.quantize_checkpoint import export_checkpoint
from mmclipq.backends.base import backend_class
from mmclipq.detector import Int8Detector
from mmclipq.engine.int8_runner import Int8Runner
from mmclipq.errors import ClipQError

RESULTS = []
TTA_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(160, 160), keep_ratio=True)],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]


@METRICS.register_module(force=True)
class KeepPredictions(BaseMetric):
    """Puts the boxes and scores of every image into ``RESULTS``."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            found = sample['pred_instances']
            RESULTS.append((sample['img_id'], found['bboxes'], found['scores']))
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


@pytest.fixture
def test_config(small_config):
    """A config whose untrained detector gives boxes, and which keeps them."""
    RESULTS.clear()
    return small_config(
        **{
            'model.test_cfg': dict(_delete_=True, nms_pre=20, score_thr=0.0, conf_thr=0.0)
            | dict(min_bbox_size=0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
            'test_evaluator': dict(_delete_=True, type='KeepPredictions'),
            'runner_type': 'mmclipq.Int8Runner',
        }
    )


@pytest.fixture
def checkpoint(test_config, tmp_path) -> Path:
    """A float checkpoint of the config's detector with random weights."""
    torch.manual_seed(1)
    model = build_detector(test_config.model, random=True)
    model.init_weights()
    classes = {'dataset_meta': {'classes': test_config.metainfo['classes']}}
    torch.save({'state_dict': model.state_dict(), 'meta': classes}, tmp_path / 'float.pth')
    return tmp_path / 'float.pth'


def run(cfg, load_from) -> Runner:
    cfg.load_from = str(load_from)
    runner = RUNNERS.build(cfg)
    runner.test()
    return runner


def expected_of(detector, cfg) -> list:
    found = []
    for batch in Runner.build_dataloader(cfg.test_dataloader, seed=0):
        for sample in detector.test_step(batch):
            instances = sample.pred_instances
            found.append((sample.img_id, instances.bboxes, instances.scores))
    return found


def assert_equal(found, wanted):
    assert len(found) == len(wanted) == 6
    for (image, boxes, scores), (other, other_boxes, other_scores) in zip(
        found, wanted, strict=True
    ):
        assert image == other
        assert torch.equal(boxes, other_boxes)
        assert torch.equal(scores, other_scores)
        assert len(boxes) == 10


def test_file_and_checkpoint_give_the_same_integer_predictions(test_config, checkpoint, tmp_path):
    out = tmp_path / 'int8.clipq'
    export_checkpoint(test_config, checkpoint, out)
    runner = run(test_config, out)
    assert isinstance(runner.model, Int8Detector)
    assert isinstance(runner, Runner)
    from_file = RESULTS.copy()
    assert_equal(from_file, expected_of(load_int8(out), test_config))
    RESULTS.clear()
    runner = run(test_config, checkpoint)
    assert isinstance(runner.model, Int8Detector)
    assert_equal(RESULTS, from_file)


def test_predictions_are_not_those_of_the_float_detector(test_config, checkpoint):
    run(test_config, checkpoint)
    integer = RESULTS.copy()
    RESULTS.clear()
    test_config.runner_type = 'Runner'
    test_config.custom_hooks = []
    runner = run(test_config, checkpoint)
    assert not isinstance(runner.model, Int8Detector)
    assert len(RESULTS) == len(integer) == 6
    assert not any(torch.equal(a[2], b[2]) for a, b in zip(RESULTS, integer, strict=True))


@pytest.mark.parametrize('source', ['file', 'checkpoint'])
def test_test_time_augmentation_wraps_the_integer_detector(
    test_config, checkpoint, tmp_path, source
):
    load_from = checkpoint
    if source == 'file':
        load_from = tmp_path / 'int8.clipq'
        export_checkpoint(test_config, checkpoint, load_from)
    tta = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    # As mmdet's tools/test.py --tta does it.
    test_config.model = ConfigDict(type='DetTTAModel', tta_cfg=tta, module=test_config.model)
    test_config.test_dataloader.dataset.pipeline = TTA_PIPELINE
    calls = []
    backend = backend_class('auto')
    run_graph = backend.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backend, 'run', lambda self, *x, **kw: calls.append(1) or run_graph(self, *x, **kw)
        )
        runner = run(test_config, load_from)
    assert type(runner.model).__name__ == 'DetTTAModel'
    assert isinstance(runner.model.module, Int8Detector)
    assert len(RESULTS) == 6
    # One batch of six images, plain and flipped.
    assert len(calls) == 2


def test_unknown_backend_is_refused_before_any_calibration(test_config, checkpoint, monkeypatch):
    test_config.int8_test = dict(backend='abacus')
    monkeypatch.setattr('mmclipq.engine.int8_runner.quantize_checkpoint', None)
    with pytest.raises(ClipQError, match="backend 'abacus', wanted one of .*reference"):
        run(test_config, checkpoint)


def test_backend_of_the_config_is_used(test_config, checkpoint):
    test_config.int8_test = dict(backend='simulated', calib_images=1)
    runner = run(test_config, checkpoint)
    assert runner.model.int8_backend.name == 'simulated'
    assert len(RESULTS) == 6


def test_missing_file_is_named(test_config, tmp_path):
    with pytest.raises(ClipQError, match=r'absent\.clipq: found no file'):
        run(test_config, tmp_path / 'absent.clipq')


@pytest.mark.parametrize(
    ('backend', 'file', 'wanted'),
    [
        ('auto', 'float.pth', ('cuda:1', 'cuda:1')),
        ('reference', 'float.pth', ('cuda:1', 'cuda:1')),
        ('cpu', 'float.pth', ('cuda:1', 'cpu')),
        ('openvino', 'float.pth', ('cuda:1', 'cpu')),
        ('auto', 'int8.clipq', ('cuda:1',)),
        ('cpu', 'int8.clipq', ('cpu',)),
        ('auto', 'int8.onnx', ('cpu',)),
    ],
)
def test_the_device_is_that_of_the_model_where_the_backend_runs_there(
    monkeypatch, backend, file, wanted
):
    """With a stand-in for a model on a GPU: calibration, then execution."""
    places = []

    def note(device):
        places.append(device)
        return SimpleNamespace(runtime='', int8_backend=SimpleNamespace(name=''))

    stand_ins = {
        'backend_class': lambda name, device: None,
        'quantize_checkpoint': lambda cfg, path, count, device: (note(device), None, None),
        'to_int8': lambda detector, quantized, name, device: note(device),
        'load_detector': lambda path, device, name: note(device),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(f'mmclipq.engine.int8_runner.{name}', stand_in)
    runner = object.__new__(Int8Runner)
    runner.cfg = Config(dict(int8_test=dict(backend=backend), model=dict()))
    runner.model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device='cuda:1')]))
    runner._load_from, runner._has_loaded, runner.logger = file, False, logging.getLogger()
    runner.load_or_resume()
    assert tuple(places) == wanted
