"""Integers, dequantized values and the rounded float model, on real images."""

import pytest
import torch

from mmclipq.apis.calibration_data import config_batches
from mmclipq.backends import build_backend
from mmclipq.backends.simulated import SimulatedBackend
from mmclipq.detector import Int8Detector
from mmclipq.evaluation.verify import rounded_detector, rounded_executions, verify
from mmclipq.lowering.rounded import CodeDifference, compare_codes


@pytest.fixture
def images(cfg, model):
    batches = config_batches(cfg, 3)
    return [model.data_preprocessor(batch, False)['inputs'] for batch in batches]


def test_executions_agree(model, quantized, images):
    result = verify(model, quantized, images)
    assert result.images == 3
    kinds = quantized.graph.tensors
    assert result.names == {name for name, kind in kinds.items() if kind.is_codes}
    assert result.unequal == []
    # Batch norm rounds in another order: single steps, at most 1 code in 1,000 of a tensor.
    assert set(result.forced) == set(result.free)
    assert all(d.largest <= 1 and d.rate <= 1e-3 for d in result.forced.values())
    assert '0 tensors differ' in str(result)


def test_a_wrong_backend_is_found(model, quantized, images, monkeypatch):
    right = SimulatedBackend.maxpool, SimulatedBackend.upsample
    monkeypatch.setattr(SimulatedBackend, 'upsample', lambda *args: right[1](*args) * 0)
    result = verify(model, quantized, images[:1])
    assert result.unequal
    assert result.unequal[0] == 'interpolate'


def test_a_wrong_model_is_found(model, quantized, images):
    model.bbox_head.convs_bridge[0].bn.bias.data += 0.5
    result = verify(model, quantized, images[:1])
    assert result.forced['bbox_head.convs_bridge.0.conv'].rate > 0.5
    others = [d for n, d in result.forced.items() if 'convs_bridge.0' not in n]
    assert max(d.rate for d in others) <= 1e-3


def test_rounded_execution_leaves_the_model_as_it_was(model, quantized, images):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rounded_executions(model, quantized)[0].run(images[0])
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_rounded_tensors_lie_on_the_grid(model, quantized, images):
    (execution,) = rounded_executions(model, quantized)
    execution.run(images[0])
    codes = build_backend('reference', quantized.graph).codes(images[0])
    assert execution.found.keys() == codes.keys()
    assert all(execution.found[name].dtype == codes[name].dtype for name in codes)
    assert torch.equal(execution.found['image.codes'], codes['image.codes'])


def test_rounded_detector_predicts(cfg, model, quantized):
    stock = type(model)
    with rounded_detector(model, quantized) as detector:
        assert isinstance(detector, Int8Detector)
        assert detector.int8_backend.name == 'rounded'
        (sample,) = detector.test_step(next(config_batches(cfg, 1)))
    assert type(model) is stock
    assert sample.pred_instances.bboxes.shape[1] == 4


def test_compare_codes_counts_steps():
    found = torch.tensor([0, 1, -128, 127], dtype=torch.int8)
    wanted = torch.tensor([0, 2, 127, 127], dtype=torch.int8)
    assert compare_codes(found, wanted) == CodeDifference(differing=2, total=4, largest=255)
    assert compare_codes(found, wanted).rate == 0.5
