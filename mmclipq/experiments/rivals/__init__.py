"""Adapters to the libraries that Table 8 and calibrations compare with, by name."""

from __future__ import annotations

from .base import Rival
from .nncf import Nncf
from .nncf_after_training import NncfAfterTraining
from .onnxruntime import OnnxRuntime
from .pruning import Pruning

RIVALS: dict[str, Rival] = {
    'nncf': Nncf(),
    'pruning': Pruning(),
    'onnxruntime-static': OnnxRuntime(dynamic=False),
    'onnxruntime-dynamic': OnnxRuntime(dynamic=True),
}
"""Of Table 8."""

AFTER_TRAINING: dict[str, Rival] = {
    'nncf': NncfAfterTraining(),
    'nncf-mixed': NncfAfterTraining(mixed=True),
    'nncf-accuracy': NncfAfterTraining(control=True),
    'onnxruntime': OnnxRuntime(dynamic=False),
}
"""Those that quantize a float checkpoint without training."""

__all__ = ['AFTER_TRAINING', 'RIVALS', 'Rival']
