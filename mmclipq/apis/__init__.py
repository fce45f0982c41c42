"""Python entry points: add clipping to a config, quantize, write and read ``.clipq`` files.

Each name is imported when it is used: running a file needs nothing of what makes one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    'Int8Inferencer': 'inferencer',
    'Quantized': 'quantize_model',
    'build_detector': 'detectors',
    'clipq_hooks': 'clipq_config',
    'load_float_checkpoint': 'detectors',
    'load_int8': 'int8_file',
    'quantize': 'quantize_model',
    'save_int8': 'int8_file',
    'with_clipq': 'clipq_config',
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f'.{_LAZY[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
