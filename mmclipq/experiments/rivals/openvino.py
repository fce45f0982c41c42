"""The parts of a detector as models of OpenVINO, which executes their int8 operations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...apis import build_detector
from .parts import ForeignDetector, Function, Parts


def example(name: str, detector: Any, parts: Parts) -> Tensor:
    """An input of the part ``name``: float32 images, or what RoIAlign gives of two regions."""
    if name == 'dense':
        return parts.image
    extractor = detector.roi_head.bbox_roi_extractor
    side = extractor.roi_layers[0].output_size
    return torch.zeros(2, extractor.out_channels, *side)


def save(models: Mapping[str, Any], folder: Path) -> int:
    """Write models by the names of their parts; returns their bytes."""
    import openvino

    size = 0
    for name, model in models.items():
        path = folder / f'{name}.xml'
        openvino.save_model(model, path, compress_to_fp16=False)
        size += path.stat().st_size + path.with_suffix('.bin').stat().st_size
    return size


def load(cfg: Config, folder: Path) -> nn.Module:
    """The config's detector with the parts that :func:`save` wrote.

    OpenVINO has every weight; those of the detector itself are never read.
    """
    detector = build_detector(cfg.model).eval()
    parts = Parts.of(detector)
    functions = {name: function(folder / f'{name}.xml') for name in parts.modules()}
    return ForeignDetector(detector, parts, functions)


def function(model: Any) -> Function:
    """What executes a model, or the file of one, on as many threads as torch's."""
    import openvino

    options = {
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    model = str(model) if isinstance(model, Path) else model
    return requested(openvino.Core().compile_model(model, 'CPU', options))


def requested(compiled: Any) -> Function:
    """What executes a compiled model."""

    def run(x: Tensor) -> list[Tensor]:
        # A request of each call: none outlives its model.
        found = compiled.create_infer_request().infer([x.numpy()])
        return [torch.from_numpy(y.copy()) for y in found.values()]

    return run
