"""OpenVINO on the exported graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...exporters.openvino_ir import convert
from ..base import register_backend
from .exported import ExportedBackend, saturates


def _without_quantizers(model: Any) -> Any:
    """``model`` with the arithmetic of each FakeQuantize in float32 operators, which no integer
    kernel implements."""
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != 'FakeQuantize':
            continue
        low, high, first, last = (
            node.input_value(index).get_node().get_data().item() for index in range(1, 5)
        )
        step = (high - low) / (last - first)
        v = ops.multiply(node.input_value(0), np.float32(1 / step))
        v = ops.add(ops.round(v, 'half_to_even'), np.float32(round(first - low / step)))
        node.output(0).replace(ops.clamp(v, first, last).output(0))
    return model


def compiled(model: Any, integers: bool = False) -> Any:
    """OpenVINO's ``CompiledModel`` of its model, with torch's number of threads.

    Where the sums of its integer kernels would saturate, codes are multiplied in float32 instead.

    Args:
        model: The model, which stays as it is.
        integers: Whether to run integer kernels even there.
    """
    import openvino

    if saturates() and not integers:
        model = _without_quantizers(model.clone())
    options = {
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
        # Without it newer processors run what is not int8 in bfloat16.
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    return openvino.Core().compile_model(model, 'CPU', options)


@register_backend
class OpenVinoBackend(ExportedBackend):
    """The exported graph in OpenVINO on the CPU."""

    name = 'openvino'
    packages = ('onnx', 'openvino')

    def compile(self, model):
        network = compiled(convert(model))

        def run(feed):
            # A request for each call lets several threads use the backend.
            result = network.create_infer_request().infer(feed)
            return [result[index] for index in range(len(model.graph.output))]

        return run
