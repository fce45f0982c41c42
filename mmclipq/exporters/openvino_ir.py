"""OpenVINO's IR from an ONNX model: a pair of files that belong together.

The ``.xml`` file states the SHA-256 of its weights. A pair takes the place of an older one in three
steps: the new weights beside the old ones under a name of their own, the ``.xml`` file, the weights
under their usual name. Whoever reads the pair through :func:`weights_file` has the old one whole
before the second step and the new one whole after it, whenever the writer was killed.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ClipQError
from ..graph.writing import write_atomically
from .packages import require

_STATED = re.compile(rb'<weights value="([0-9a-f]{64})"')


def convert(model: Any) -> Any:
    """OpenVINO's model of an ONNX ``ModelProto``; metadata become runtime information."""
    openvino = require('openvino')
    result = openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    for entry in model.metadata_props:
        result.set_rt_info(entry.value, ['mmclipq', entry.key])
    _keep_in_float(result)
    return result


def _keep_in_float(model: Any) -> None:
    """Make OpenVINO compute in float32 what its integer kernels compute wrongly.

    Those of OpenVINO 2026.4 pad with the code 0, whatever code stands for zero, and are wrong for
    transposed convolutions with dilation. No integer kernel reads a maximum, here with the least
    float32 number.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        transposed = kind in ('ConvolutionBackpropData', 'GroupConvolutionBackpropData')
        dilated = any(step != 1 for step in node.get_attributes().get('dilations', ()))
        if kind == 'Pad' or (transposed and dilated):
            least = np.float32(np.finfo(np.float32).min)
            node.input(0).replace_source_output(ops.maximum(node.input_value(0), least).output(0))


def ir_bytes(model: Any, folder: str | os.PathLike, stem: str) -> tuple[bytes, bytes]:
    """Contents of the ``.xml`` and ``.bin`` files of an ONNX model.

    Weights stay int8 and float constants float32: float16 would change scales and biases.

    Args:
        model: ONNX ``ModelProto``.
        folder: An empty folder to write to.
        stem: File name without its ending.
    """
    openvino = require('openvino')
    path = Path(folder) / f'{stem}.xml'
    source = convert(model)
    openvino.save_model(source, path, compress_to_fp16=False)
    weights = path.with_suffix('.bin').read_bytes()
    source.set_rt_info(hashlib.sha256(weights).hexdigest(), ['mmclipq', 'weights'])
    openvino.save_model(source, path, compress_to_fp16=False)
    if path.with_suffix('.bin').read_bytes() != weights:
        raise ClipQError(f'{stem}: found weights that OpenVINO writes differently each time')
    return path.read_bytes(), weights


def _own_name(path: Path, checksum: str) -> Path:
    """Where the weights of ``path`` lie until its ``.xml`` file is in place."""
    return path.with_name(f'.{path.stem}.{checksum[:16]}.bin')


def write_pair(path: Path, xml: bytes, weights: bytes) -> None:
    """Write an ``.xml`` file and its weights in place of an older pair.

    Raises:
        OSError: if a file cannot be written; an older pair then stays whole.
    """
    own = _own_name(path, hashlib.sha256(weights).hexdigest())
    write_atomically(own, weights)
    try:
        write_atomically(path, xml)
    except BaseException:
        own.unlink(missing_ok=True)
        raise
    os.replace(own, path.with_suffix('.bin'))
    pattern = re.compile(re.escape(f'.{path.stem}.') + r'[0-9a-f]{16}\.bin')
    for other in path.parent.iterdir():  # of writers that were killed
        if pattern.fullmatch(other.name):
            other.unlink(missing_ok=True)


def weights_file(path: Path) -> Path:
    """The file with the weights of an ``.xml`` file.

    Raises:
        ClipQError: if the weights beside it are those of another ``.xml`` file, or missing.
    """
    stated = _STATED.search(path.read_bytes())
    usual = path.with_suffix('.bin')
    if stated is None:  # of a version that did not state them
        return usual
    checksum = stated[1].decode()
    for file in (usual, _own_name(path, checksum)):
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == checksum:
            return file
    raise ClipQError(
        f'{path}: found no {usual.name} with its weights, wanted the file that was written with '
        'it; export it again'
    )
