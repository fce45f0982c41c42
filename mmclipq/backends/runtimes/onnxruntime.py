"""ONNX Runtime on the exported graph."""

from __future__ import annotations

from typing import Any

import torch

from ..base import register_backend
from .exported import ExportedBackend


def session(model: Any, optimized: str = '') -> Any:
    """An ``InferenceSession`` of a ``ModelProto`` or a file, with torch's number of threads.

    Args:
        model: The model or its path.
        optimized: File to write the optimized graph to.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Where a processor would add int8 products in 16 bits, kernels for uint8 weights are exact.
    options.add_session_config_entry('session.x64quantprecision', '1')
    if optimized:
        options.optimized_model_filepath = optimized
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, ['CPUExecutionProvider'])


@register_backend
class OnnxRuntimeBackend(ExportedBackend):
    """The exported graph in ONNX Runtime on the CPU."""

    name = target = package = 'onnxruntime'

    def compile(self, model):
        runner = session(model)
        return lambda feed: runner.run(None, feed)
