"""Clipping-based power-of-two int8 quantization for MMDetection."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ._compat import enable as _enable
from .version import __version__

_enable()

_LAZY = {
    'prepare_model': 'prepare',
    'restore_model': 'prepare',
    'quantize': 'apis',
    'save_int8': 'apis',
    'load_int8': 'apis',
    'with_clipq': 'apis',
    'clipq_hooks': 'apis',
    'Int8Graph': 'graph',
    'Int8Detector': 'detector',
}

__all__ = ['__version__', 'base_config', *_LAZY]


def base_config(name: str = 'clipq') -> str:
    """Path of an enabling base config, for ``_base_`` lists of projects elsewhere.

    ``_base_ = ['./my_config.py', __import__('mmclipq').base_config()]`` works in every tool.

    Raises:
        FileNotFoundError: if no base of that name ships with mmclipq.
    """
    package = Path(__file__).parent
    folders = [package / '.mim' / 'configs', package.parent / 'configs']
    for folder in folders:
        path = folder / '_base_' / f'{name}.py'
        if path.is_file():
            return str(path)
    raise FileNotFoundError(
        f'found no base config {name!r} of mmclipq, wanted one in {folders[0] / "_base_"}; '
        'install mmclipq again'
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f'.{_LAZY[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
