"""The report on other runtimes counts codes, integer layers and bytes."""

import pytest

from mmclipq.apis import load_int8
from mmclipq.apis.calibration_data import config_batches
from mmclipq.apis.int8_file import load_parts
from mmclipq.evaluation.runtimes import compare_runtime

pytest.importorskip('onnx')


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_report(cfg, checkpoints, runtime):
    pytest.importorskip(runtime)
    _, path = checkpoints
    parts = load_parts(path)
    detector = load_int8(path)
    backend = detector.int8_backend
    report = compare_runtime(detector, parts, config_batches(cfg, 2), runtime)
    assert detector.int8_backend is backend
    assert report.images == 2
    layers = [node.name for node in parts.graph.products()]
    assert sorted([*report.integer, *report.other]) == sorted(layers)
    # ONNX Runtime has no integer convolution with float32 results, which the last ones give.
    floats = [n.name for n in parts.graph.products() if not n.type.is_codes]
    assert set(report.other) <= set(floats)
    assert len(report.integer) >= len(layers) - len(floats) > 50
    codes = [n for n, kind in parts.graph.tensors.items() if kind.is_codes]
    assert list(report.codes) == codes
    assert all(largest == 1 for largest in report.parted.values())
    assert all(report.codes[name].differing for name in report.parted)
    assert list(report.alone) == codes
    share = sum(d.differing for d in report.alone.values()) / sum(
        d.total for d in report.alone.values()
    )
    if runtime == 'openvino':
        assert share < 1e-5
        assert max(d.largest for d in report.alone.values()) <= 1
    else:  # sums before leaky relu have twice the step of results with an offset, and saturate
        assert share < 0.3
    # The deployed graph, not only the one whose every tensor is an output.
    assert sorted(report.outputs) == ['head_0_0', 'head_0_1', 'head_0_2']
    assert all(apart < 0.5 * largest for apart, largest in report.outputs.values())
    assert report.table().count('\n') == len(codes) + 1
    # Scales, biases and names weigh more beside so few weights.
    assert 0.25 < report.bytes / report.float_bytes < 0.29
    text = str(report)
    assert text.startswith(f'{runtime}, 2 images, {len(codes)} tensors:\nfree running ')
    assert f'{len(report.integer)} of {len(layers)} layers run in 8-bit integers' in text
