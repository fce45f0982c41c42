"""NNCF's quantization after training, with its own defaults, and with its accuracy control."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ...apis import build_detector, load_float_checkpoint
from ...apis.calibration_data import with_instances
from ...apis.quantize_checkpoint import calibration_batches
from ...evaluation.tuning.held_out import HeldOut
from .base import Rival
from .openvino import example, function, load, requested, save
from .parts import Function, Parts, calibration_inputs

MAX_DROP = 0.003
HELD_IMAGES = 64


class NncfAfterTraining(Rival):
    """Quantizes OpenVINO's models of a float checkpoint, which OpenVINO executes in int8.

    Args:
        mixed: Whether activations have zero points (preset ``MIXED``), else they are symmetric, as
            the default preset ``PERFORMANCE`` has them.
        control: Whether layers go back to float until AP on images of the training set that do
            not calibrate is within :data:`MAX_DROP` of float. Of a detector of two parts each may
            lose half of it, one after the other.
    """

    packages = {'nncf': 'nncf', 'openvino': 'openvino'}
    executed = 'int8, OpenVINO'

    def __init__(self, mixed: bool = False, control: bool = False) -> None:
        self.mixed, self.control = mixed, control

    def save(self, cfg: Config, checkpoint: Path, folder: Path) -> int:
        import nncf
        import openvino

        detector = build_detector(cfg.model)
        load_float_checkpoint(detector, checkpoint)
        parts = Parts.of(detector.eval())
        inputs = calibration_inputs(detector, cfg, parts)
        presets = nncf.QuantizationPreset
        preset = presets.MIXED if self.mixed else presets.PERFORMANCE
        models = {
            name: openvino.convert_model(
                module.eval(), example_input=example(name, detector, parts)
            )
            for name, module in parts.modules().items()
        }
        held = Held(detector, parts, cfg) if self.control else None
        for name, model in models.items():
            data = nncf.Dataset([x.numpy() for x in inputs[name]])
            if held is None:
                models[name] = nncf.quantize(model, data, preset=preset)
                continue
            held.start(models, name)
            models[name] = nncf.quantize_with_accuracy_control(
                model,
                data,
                nncf.Dataset(list(range(len(held.images)))),
                held.ap,
                max_drop=MAX_DROP / len(models),
                preset=preset,
                # Its workers would each execute on all cores.
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    num_ranking_workers=1
                ),
            )
        return save(models, folder)

    def load(self, cfg: Config, checkpoint: Path, folder: Path) -> nn.Module:
        return load(cfg, folder)


class Held:
    """AP of a detector with one part under test."""

    def __init__(self, detector: Any, parts: Parts, cfg: Config) -> None:
        batches = calibration_batches(with_instances(cfg), held=HELD_IMAGES)
        self.images = HeldOut(detector, batches)
        self.images.check('nncf-accuracy')
        self.detector, self.parts = detector, parts
        self.functions: dict[str, Function] = {}
        self.name = ''

    def start(self, models: dict[str, Any], name: str) -> None:
        """The other parts are those of ``models`` while ``name`` is tested."""
        self.functions = {n: function(m) for n, m in models.items() if n != name}
        self.name = name

    def ap(self, compiled: Any, indices: Iterable[int]) -> float:
        """AP on some of the images, 0 to 1, as NNCF asks for it."""
        images = self.images.of(list(indices))
        functions = {**self.functions, self.name: requested(compiled)}
        with self.parts.executing(self.detector, functions):
            return images.ap(images.found(self.detector.predict))
