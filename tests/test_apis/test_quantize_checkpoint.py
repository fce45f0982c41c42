"""From a config and a checkpoint to a ``.clipq`` file."""

import pytest
import torch

from mmclipq.apis import load_int8
from mmclipq.apis.quantize_checkpoint import (
    ExportSummary,
    export_checkpoint,
    load_for_quantization,
    quantize_checkpoint,
)
from mmclipq.errors import ClipQError
from mmclipq.prepare import prepare_model, ranges_state


@pytest.fixture
def ranged(cfg, float_model, checkpoint):
    """A checkpoint with the ranges of clipped training, far below what calibration would find."""
    prepare_model(float_model)
    ranges = dict.fromkeys(ranges_state(float_model), (-6, -5))
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, 'clipq': ranges}, checkpoint)
    return checkpoint


def test_export(cfg, checkpoint, digits_root, tmp_path):
    out = tmp_path / 'new' / 'digits.clipq'
    summary = export_checkpoint(cfg, checkpoint, out, calib_images=2)
    assert summary.path == out
    assert summary.size == out.stat().st_size
    content = torch.load(checkpoint, weights_only=True)['state_dict']
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    wanted = sum(v.numel() * 4 for k, v in content.items() if not k.endswith(buffers))
    assert summary.float_size == wanted
    assert summary.ratio < 0.4
    assert summary.quantized == 74  # of 75: nothing reads the last one of MobileNetV2
    assert not summary.left
    assert '74 layers int8, 0 steps left in float' in str(summary)
    assert load_int8(out).dataset_meta['classes'] == tuple('0123456789')
    again = tmp_path / 'again.clipq'
    export_checkpoint(cfg, checkpoint, again, calib_dir=digits_root / 'JPEGImages', calib_images=2)
    assert load_int8(again).int8_backend.graph.outputs


def test_a_file_of_a_wanted_size(cfg, checkpoint, tmp_path):
    summary = export_checkpoint(
        cfg, checkpoint, tmp_path / 'a.clipq', 'best', size=0.12, calib_images=1
    )
    assert 0.119 < summary.ratio <= 0.12
    assert load_int8(summary.path).dataset_meta['classes'] == tuple('0123456789')


def test_same_export_gives_the_same_bytes(cfg, checkpoint, tmp_path):
    first, second = tmp_path / 'a.clipq', tmp_path / 'b.clipq'
    for out in (first, second):
        export_checkpoint(cfg, checkpoint, out, calib_images=2)
    assert first.read_bytes() == second.read_bytes()


def test_ranges_of_the_checkpoint_are_honoured(cfg, ranged):
    model, content = load_for_quantization(cfg, ranged)
    assert set(ranges_state(model).values()) == {(-6, -5)}
    assert 'state_dict' in content
    _, quantized, meta = quantize_checkpoint(cfg, ranged, calib_images=1)
    assert meta['classes'] == tuple('0123456789')
    graph = quantized.graph
    for node in graph.products():
        assert graph.tensors[node.x].exponent <= -6
        assert int(graph.constants[node.exponents].max()) <= -5


def test_without_ranges_calibration_finds_wider_ones(cfg, checkpoint):
    _, quantized, _ = quantize_checkpoint(cfg, checkpoint, calib_images=1)
    graph = quantized.graph
    assert max(graph.tensors[node.x].exponent for node in graph.products()) > -6


def test_ranges_of_other_layers(cfg, ranged):
    cfg.clipq = dict(rules=[dict(pattern='backbone.conv1.conv', skip=True)])
    with pytest.raises(ClipQError, match=r"ranges for other layers .*'backbone\.conv1\.conv'"):
        load_for_quantization(cfg, ranged)


def test_rules_of_the_config_leave_layers_in_float(cfg, checkpoint, tmp_path):
    cfg.clipq = dict(rules=[dict(pattern='backbone.conv1.conv', skip=True)])
    summary = export_checkpoint(cfg, checkpoint, tmp_path / 'a.clipq', calib_images=1)
    assert summary.quantized == 73
    reasons = ' '.join(summary.left.values())
    assert 'Conv2d is skipped' in reasons
    assert 'Conv2d is skipped' in str(summary)


@pytest.mark.parametrize('count', [0, -1])
def test_no_calibration_images(cfg, checkpoint, tmp_path, count):
    with pytest.raises(ClipQError, match=f'--calib-images: found {count}, wanted at least 1'):
        export_checkpoint(cfg, checkpoint, tmp_path / 'a.clipq', calib_images=count)
    assert not (tmp_path / 'a.clipq').exists()


def test_bad_output_name_and_missing_model(cfg, checkpoint, tmp_path):
    with pytest.raises(ClipQError, match=r'a\.pth: found another ending, wanted .*\.clipq'):
        export_checkpoint(cfg, checkpoint, tmp_path / 'a.pth')
    cfg.pop('model')
    with pytest.raises(ClipQError, match=r'digits\.py: found no model section'):
        export_checkpoint(cfg, checkpoint, tmp_path / 'a.clipq')


def test_summary_groups_reasons(tmp_path):
    left = {f'layer{i}': 'SiLU has no int8 form' for i in range(5)} | {'head': 'other'}
    text = str(ExportSummary(tmp_path / 'a', 2**20, 4 * 2**20, 7, left))
    assert '1.00 MiB, 25.00% of 4.00 MiB' in text
    assert '  float: layer0, layer1, layer2 and 2 more: SiLU has no int8 form' in text
    assert '  float: head: other' in text
