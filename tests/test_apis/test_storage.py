"""The size of the files for the paper's YOLOv3: Darknet-53 with 80 classes."""

import importlib.util

import torch

from mmclipq.apis import build_detector, load_int8, quantize, save_int8
from mmclipq.exporters.onnx_file import graph_model
from mmclipq.prepare import prepare_model, prepare_options


def test_darknet53_takes_at_most_a_quarter_of_its_float_weights(load_config, tmp_path):
    cfg = load_config('clipq_yolov3.py')
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    prepare_model(model, **prepare_options(cfg.clipq))
    state = model.state_dict().values()
    assert round(sum(value.numel() for value in state) / 1e6, 1) == 62.0
    parameters = sum(p.numel() for p in model.parameters())

    quantized = quantize(model, [torch.rand(1, 3, 64, 64)])
    size = save_int8(tmp_path / 'yolov3.clipq', model, quantized, cfg, {})
    # Fresh weights fill their ranges evenly, which is the hardest case for the compression.
    assert size <= 0.25 * 4 * parameters
    assert (tmp_path / 'yolov3.clipq').stat().st_size == size

    if importlib.util.find_spec('onnx'):
        layers = quantized.graph.products()
        constants = quantized.graph.constants
        folded = sum(constants[n.weight].numel() + constants[n.bias].numel() for n in layers)
        assert graph_model(quantized.graph).ByteSize() <= 0.26 * 4 * folded

    detector = load_int8(tmp_path / 'yolov3.clipq')
    assert not quantized.left
    assert sum(p.numel() for p in detector.parameters()) == 0
