"""ONNX Runtime on the exported graph."""

from __future__ import annotations

from typing import Any

import torch

from ..base import register_backend
from .exported import ExportedBackend, saturates


def session(model: Any, optimized: str = '') -> Any:
    """An ``InferenceSession`` of a ``ModelProto`` or a file, with torch's number of threads.

    Where the sums of its integer kernels would saturate, codes are multiplied in float32 instead.

    Args:
        model: The model, or the bytes of one; they can name no other file.
        optimized: File to write the optimized graph of integer kernels to, wherever that is.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if saturates() and not optimized:
        options.add_session_config_entry('session.disable_quant_qdq', '1')
    if optimized:
        options.optimized_model_filepath = optimized
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, ['CPUExecutionProvider'])


@register_backend
class OnnxRuntimeBackend(ExportedBackend):
    """The exported graph in ONNX Runtime on the CPU."""

    name = target = 'onnxruntime'
    packages = ('onnx', 'onnxruntime')

    def compile(self, model):
        runner = session(model)
        return lambda feed: runner.run(None, feed)
