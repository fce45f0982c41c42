"""The runner behind ``tools/test.py --int8``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..apis.exported_detector import RUNTIMES, load_detector, on_cpu_alone
from ..apis.quantize_checkpoint import quantize_checkpoint
from ..backends.base import backend_class
from ..detector import to_int8
from ..graph.artifact import is_artifact
from ..registry import RUNNERS
from .cpu_runner import CpuRunner


@RUNNERS.register_module()
class Int8Runner(CpuRunner):
    """Tests the integer execution of what ``load_from`` names: a ``.clipq`` file, an exported
    end-to-end file, or a float checkpoint.

    The config's ``int8_test`` section holds ``backend`` and ``calib_images``. Data, evaluators,
    hooks and test-time augmentation are those of the config. Calibration and execution are on the
    device of the model that the config builds; what runs on a CPU alone is executed there.
    """

    _has_loaded: bool

    def load_or_resume(self) -> None:
        if self._has_loaded:
            return
        options = dict(self.cfg.get('int8_test', {}))
        backend = options.get('backend', 'auto')
        exported = Path(self._load_from).suffix in RUNTIMES
        device = str(next(self.model.parameters()).device)
        place = 'cpu' if on_cpu_alone(self._load_from, backend) else device
        detector: Any  # with what the mixin adds to its class
        backend_class(backend, place)  # a wrong name must not cost a calibration
        if exported or is_artifact(self._load_from):
            detector = load_detector(self._load_from, place, backend)
        else:
            detector, quantized, _ = quantize_checkpoint(
                self.detector_config(),
                self._load_from,
                options.get('calib_images'),
                device=device,
            )
            detector = to_int8(detector, quantized, backend, place)
        self.replace_detector(detector)
        self._has_loaded = True
        runtime = detector.runtime if exported else detector.int8_backend.name
        self.logger.info(f'mmclipq: integer execution of {self._load_from} on {runtime}')

    def detector_config(self) -> Config:
        """A copy of the config with the bare detector as its model."""
        cfg = copy.deepcopy(self.cfg)
        if 'module' in cfg.model:  # a test-time augmentation wrapper
            cfg.model = cfg.model.module
        return cfg

    def replace_detector(self, detector: nn.Module) -> None:
        """Put ``detector`` into the model, inside whatever wraps it."""
        holder, name = self, 'model'
        # A DDP wrapper or a test-time augmentation model holds the detector as its module.
        while isinstance(getattr(getattr(holder, name), 'module', None), nn.Module):
            holder, name = getattr(holder, name), 'module'
        setattr(holder, name, detector)
