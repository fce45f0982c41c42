"""OpenVINO on the exported graph."""

from __future__ import annotations

from typing import Any

import torch

from ...exporters.openvino_ir import convert
from ..base import register_backend
from .exported import ExportedBackend


def compiled(model: Any) -> Any:
    """OpenVINO's ``CompiledModel`` of a model or a file, with torch's number of threads."""
    import openvino

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

    name = package = 'openvino'

    def compile(self, model):
        network = compiled(convert(model))

        def run(feed):
            # A request for each call lets several threads use the backend.
            result = network.create_infer_request().infer(feed)
            return [result[index] for index in range(len(model.graph.output))]

        return run
