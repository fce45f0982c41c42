"""Adapters to the libraries that Table 8 compares with, by name."""

from __future__ import annotations

from .base import Rival
from .nncf import Nncf
from .onnxruntime import OnnxRuntime
from .pruning import Pruning

RIVALS: dict[str, Rival] = {
    'nncf': Nncf(),
    'pruning': Pruning(),
    'onnxruntime-static': OnnxRuntime(dynamic=False),
    'onnxruntime-dynamic': OnnxRuntime(dynamic=True),
}

__all__ = ['RIVALS', 'Rival']
