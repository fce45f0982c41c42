"""Other libraries' quantization after training: on the drawn images, in integers, and held out."""

from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmclipq.apis import build_detector
from mmclipq.apis.calibration_data import with_instances
from mmclipq.apis.quantize_checkpoint import calibration_batches
from mmclipq.errors import ClipQError
from mmclipq.evaluation.tuning.held_out import HeldOut
from mmclipq.experiments.rivals import AFTER_TRAINING, nncf_after_training
from mmclipq.experiments.rivals.openvino import example, function
from mmclipq.experiments.rivals.parts import Parts, calibration_inputs

nncf = pytest.importorskip('nncf')
openvino = pytest.importorskip('openvino')


@pytest.fixture
def detector(load_config, tmp_path):
    """A two-stage detector of fresh weights, its config and its checkpoint."""
    cfg = load_config('quickstart/faster_rcnn_mobilenetv2_digits.py')
    cfg.clipq = Config({'int8': {'calib_images': 2, 'calib_seed': 1}})
    torch.manual_seed(0)
    detector = build_detector(cfg.model, random=True).eval()
    detector.roi_head.bbox_head.fc_cls.weight.data *= 100  # scores that are far from each other
    torch.save({'state_dict': detector.state_dict()}, tmp_path / 'float.pth')
    return detector, cfg, tmp_path / 'float.pth'


def precisions(path) -> Counter[str]:
    """What OpenVINO executes the convolutions and linear layers of a file in."""
    model = openvino.Core().compile_model(str(path), 'CPU').get_runtime_model()
    kinds = [op.get_rt_info() for op in model.get_ordered_ops()]
    return Counter(
        info['runtimePrecision'].astype(str)
        for info in kinds
        if info['layerType'].astype(str) in ('Convolution', 'FullyConnected', 'MatMul')
    )


@pytest.mark.parametrize('name', ['nncf-mixed', 'nncf-accuracy'])
def test_nncf_gives_a_detector_in_integers(detector, name, tmp_path, monkeypatch):
    monkeypatch.setattr(nncf_after_training, 'HELD_IMAGES', 2)
    _, cfg, checkpoint = detector
    rival = AFTER_TRAINING[name]
    assert rival.save(cfg, checkpoint, tmp_path) == sum(
        file.stat().st_size for part in ('dense', 'box') for file in tmp_path.glob(f'{part}.*')
    )
    for part, layers in (('dense', 50), ('box', 4)):
        found = precisions(tmp_path / f'{part}.xml')
        assert found['u8'] + found['i8'] == sum(found.values()) >= layers
    (batch, _) = calibration_batches(cfg)
    (sample,) = rival.load(cfg, checkpoint, tmp_path).test_step(batch)
    assert sample.pred_instances.scores.shape == sample.pred_instances.labels.shape


def test_images_are_those_of_the_draw(detector):
    model, cfg, _ = detector
    parts = Parts.of(model)
    found = calibration_inputs(model, cfg, parts)
    wanted = [
        model.data_preprocessor(batch, False)['inputs']
        for batch in calibration_batches(cfg, 2, calib_seed=1)
    ]
    assert len(found['dense']) == len(found['box']) == 2
    for a, b in zip(found['dense'], wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_control_sees_the_detector_with_the_part_under_test(detector, monkeypatch):
    """In OpenVINO's float32 the detections are the float ones; with a faulty part they are not."""
    model, cfg, _ = detector
    parts = Parts.of(model)
    held = nncf_after_training.Held(model, parts, cfg)
    models = {
        name: openvino.convert_model(module, example_input=example(name, model, parts))
        for name, module in parts.modules().items()
    }
    seen = []
    monkeypatch.setattr(HeldOut, 'ap', lambda self, found: seen.append(found[0].scores) or 0.5)
    wanted = held.images.of([1]).found(model.predict)[0].scores
    options = {'INFERENCE_PRECISION_HINT': 'f32'}
    for name in models:
        held.start(models, name)
        held.ap(openvino.compile_model(models[name], 'CPU', options), [1])
    for scores in seen:
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-3)
    held.functions['dense'] = lambda x: [10 * y for y in function(models['dense'])(x)]
    held.ap(openvino.compile_model(models['box'], 'CPU', options), [1])
    assert seen[2].shape != wanted.shape or np.abs(seen[2] - wanted).max() > 0.01


def test_some_of_the_held_images(detector):
    model, cfg, _ = detector
    held = HeldOut(model, calibration_batches(with_instances(cfg), held=3))
    some = held.of([2, 0])
    assert some.batches == [held.batches[2], held.batches[0]]
    assert [info['img_id'] for info in some.infos] == [0, 1]
    assert some.infos[0]['instances'] is held.infos[2]['instances']
    assert len(held) == 3


def test_what_is_not_installed_is_named(monkeypatch):
    rival = AFTER_TRAINING['nncf']
    monkeypatch.setattr(type(rival), 'packages', {'absent_package': 'absent-package'})
    with pytest.raises(ClipQError, match='pip install absent-package'):
        rival.check()
