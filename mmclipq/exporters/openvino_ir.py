"""OpenVINO's IR from an ONNX model."""

from __future__ import annotations

import io
from typing import Any

from .packages import require


def convert(model: Any) -> Any:
    """OpenVINO's model of an ONNX ``ModelProto``; metadata become runtime information."""
    openvino = require('openvino')
    result = openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    for entry in model.metadata_props:
        result.set_rt_info(entry.value, ['mmclipq', entry.key])
    return result


def ir_bytes(model: Any, folder: str, stem: str) -> tuple[bytes, bytes]:
    """Contents of the ``.xml`` and ``.bin`` files of an ONNX model.

    Weights stay int8 and float constants float32: float16 would change scales and biases.

    Args:
        model: ONNX ``ModelProto``.
        folder: An empty folder to write to.
        stem: File name without its ending.
    """
    from pathlib import Path

    openvino = require('openvino')
    path = Path(folder) / f'{stem}.xml'
    openvino.save_model(convert(model), path, compress_to_fp16=False)
    return path.read_bytes(), path.with_suffix('.bin').read_bytes()
