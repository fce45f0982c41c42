"""Integer-arithmetic-only training with affine fake quantization ([11] in the paper), by NNCF."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..._compat import load_checkpoint
from ...apis import build_detector, load_float_checkpoint
from ...apis.quantize_checkpoint import DEFAULT_IMAGES
from .base import Rival
from .openvino import example, load, save
from .parts import Parts, calibration_inputs

_PREFIX = 'quantized_'


class Nncf(Rival):
    """Fake quantization with learnt ranges in the fine-tuning; OpenVINO executes the result.

    Weights are symmetric for each channel, activations affine for each tensor, as NNCF's preset
    ``MIXED`` has it.
    """

    packages = {'nncf': 'nncf', 'openvino': 'openvino', 'torchao': 'torchao'}
    executed = 'int8, OpenVINO'
    trains = True

    def _quantize(self, detector: Any, cfg: Config, images: int) -> Parts:
        """Quantize the parts, as modules of the detector; returns them as they were."""
        # Its operators are compiled the first time, which may take longer than its minute.
        os.environ.setdefault('NNCF_EXTENSION_LOAD_TIMEOUT', '900')
        import nncf

        parts = Parts.of(detector)
        inputs = calibration_inputs(detector, cfg, parts, images)
        for name, module in parts.modules().items():
            made = nncf.quantize(
                module.eval(),
                nncf.Dataset(inputs[name]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=images,
            )
            setattr(detector, _PREFIX + name, made)
        return parts

    def prepare(self, detector: nn.Module, cfg: Config, start: Path) -> None:
        load_float_checkpoint(detector, start)
        parts = self._quantize(detector, cfg, DEFAULT_IMAGES)
        functions = {name: getattr(detector, _PREFIX + name) for name in parts.modules()}
        stack = ExitStack()
        stack.enter_context(parts.executing(detector, functions))
        # The parts train in the place of the stock layers, for as long as the detector lives.
        detector.__dict__['rival_stack'] = stack

    def _trained(self, cfg: Config, checkpoint: Path) -> tuple[Any, Parts]:
        detector = build_detector(cfg.model, random=True)
        parts = self._quantize(detector, cfg, 1)
        state = load_checkpoint(checkpoint)['state_dict']
        detector.load_state_dict(state)
        return detector.eval(), parts

    def save(self, cfg: Config, checkpoint: Path, folder: Path) -> int:
        import nncf
        import openvino

        detector, parts = self._trained(cfg, checkpoint)
        models = {}
        for name in parts.modules():
            given = example(name, detector, parts)
            trained = getattr(detector, _PREFIX + name)
            module = nncf.strip(trained, do_copy=False, example_input=given)
            models[name] = openvino.convert_model(module, example_input=given)
        return save(models, folder)

    def load(self, cfg: Config, checkpoint: Path, folder: Path) -> nn.Module:
        return load(cfg, folder)
