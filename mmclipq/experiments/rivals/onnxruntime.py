"""ONNX Runtime's static and dynamic quantization after training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...apis import build_detector, load_float_checkpoint
from .base import Rival
from .parts import ForeignDetector, Function, Parts, calibration_inputs

_INPUT = 'x'


def export(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write ``module`` as ONNX in float32, with inputs of any size."""
    axes = {0: 'n'} if example.shape[2:] == (7, 7) else {0: 'n', 2: 'h', 3: 'w'}
    torch.onnx.export(
        module.eval(), (example,), str(path), input_names=[_INPUT], dynamic_axes={_INPUT: axes},
        dynamo=False, opset_version=17,
    )  # fmt: skip


def quantize_static(source: Path, target: Path, inputs: Iterable[Tensor]) -> None:
    """Write ``target`` with weights of 8 bits for each channel and ranges seen on ``inputs``."""
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import quantize_static as convert
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given = iter([{_INPUT: x.numpy()} for x in inputs])

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(given, None)

    ready = source.with_name(f'{source.stem}_ready.onnx')
    # The symbolic shapes of images of any size stop ONNX Runtime's own inference.
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    convert(str(ready), str(target), Reader(), per_channel=True)
    ready.unlink()


def quantize_dynamic(source: Path, target: Path) -> None:
    """Write ``target`` with weights of 8 bits; inputs get their ranges while it runs."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as convert

    # Its integer convolution wants unsigned weights.
    convert(str(source), str(target), weight_type=QuantType.QUInt8)


def function(path: Path) -> Function:
    """What executes an ONNX file, on as many threads as torch's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Its plan takes levels of the pyramid for tensors of one size where inputs have any size.
    options.enable_mem_reuse = False
    session = onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {_INPUT: x.numpy()})]


class OnnxRuntime(Rival):
    """Post-training quantization of a float checkpoint.

    Args:
        dynamic: Whether ranges of inputs are found while it runs, else on calibration images.
    """

    packages = {'onnx': 'onnx', 'onnxruntime': 'onnxruntime'}
    executed = 'int8, ONNX Runtime'

    def __init__(self, dynamic: bool) -> None:
        self.dynamic = dynamic

    def detector(self, cfg: Config, checkpoint: Path) -> Any:
        """The float detector of a checkpoint."""
        detector = build_detector(cfg.model)
        load_float_checkpoint(detector, checkpoint)
        return detector.eval()

    def save(self, cfg: Config, checkpoint: Path, folder: Path) -> int:
        detector = self.detector(cfg, checkpoint)
        parts = Parts.of(detector)
        inputs = calibration_inputs(detector, cfg, parts, 1 if self.dynamic else None)
        size = 0
        for name, module in parts.modules().items():
            source, target = folder / f'{name}_float.onnx', folder / f'{name}.onnx'
            export(module, inputs[name][0], source)
            if self.dynamic:
                quantize_dynamic(source, target)
            else:
                quantize_static(source, target, inputs[name])
            source.unlink()
            size += os.path.getsize(target)
        return size

    def load(self, cfg: Config, checkpoint: Path, folder: Path) -> nn.Module:
        detector = self.detector(cfg, checkpoint)
        parts = Parts.of(detector)
        functions = {name: function(folder / f'{name}.onnx') for name in parts.modules()}
        return ForeignDetector(detector, parts, functions)
