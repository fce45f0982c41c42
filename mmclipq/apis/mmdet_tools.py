"""What tools check before they load anything, and mmdet's own tools run as they are."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.device import get_device

from .._compat import mend_heads
from ..errors import ClipQError
from .unreadable import refusals_told, unreadable_images_named


def check_file(path: str | os.PathLike, wanted: str) -> None:
    """Return if ``path`` is a file.

    Raises:
        ClipQError: naming the path and what was wanted.
    """
    if not Path(path).is_file():
        raise ClipQError(f'{path}: found no file, wanted {wanted}')


def check_out(path: str | os.PathLike, suffix: str) -> None:
    """Return if ``path`` can be the name of an output file that ends in ``suffix``.

    Raises:
        ClipQError: naming the path and what was wanted.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ClipQError(f'{path}: found another ending, wanted an output file named *{suffix}')
    if path.is_dir():
        raise ClipQError(f'{path}: found a folder, wanted the name of a file to write')


def check_range(name: str, value: float, least: float, most: float | None = None) -> None:
    """Return if the option called ``name`` is from ``least`` to ``most``.

    Raises:
        ClipQError: naming the option, its value and what was wanted.
    """
    if value >= least and (most is None or value <= most):
        return
    wanted = f'at least {least}' if most is None else f'{least} to {most}'
    raise ClipQError(f'{name}: found {value}, wanted {wanted}')


def _shipped(kind: str) -> list[Path]:
    """Folders that may hold mmdet's ``'configs'`` or ``'tools'``: its package's, its checkout's."""
    import mmdet

    package = Path(mmdet.__file__).parent
    return [package / '.mim' / kind, package.parent / kind]


def find_config(name: str) -> str:
    """Path of a detector config: a file, or one of mmdet's own by its name or the end of its path.

    Raises:
        ClipQError: if there is none, or mmdet has several of this name.
    """
    if Path(name).is_file():
        return name
    found: list[Path] = []
    if name and not Path(name).is_absolute() and '..' not in Path(name).parts:
        paths = [path for folder in _shipped('configs') for path in folder.rglob(name)]
        # An editable mmdet links its checkout's folder into its package.
        found = list({path.resolve(): path for path in reversed(paths)}.values())
    if len(found) != 1:
        several = f'found {len(found)} configs of mmdet' if found else 'found no file'
        raise ClipQError(
            f"{name}: {several}, wanted a detector config, or the name of one of mmdet's"
        )
    return str(found[0])


def check_device(name: str) -> torch.device:
    """The device called ``name``, which torch can use.

    Raises:
        ClipQError: naming it and what was wanted.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ClipQError(
            f'--device {name}: found no such device, wanted cpu, cuda or a GPU such as cuda:1'
        ) from None
    if device.type == 'cuda':
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ClipQError(
                f'--device {name}: found {count} GPUs that torch {torch.__version__} can use, '
                'wanted this one; use --device cpu, or a build of torch for CUDA where there is one'
            )
    return device


def runner_of_processes(arguments: Sequence[str]) -> list[str]:
    """Arguments for mmdet's tools that make its processes meet on a machine without accelerator.

    Empty without ``--launcher`` in ``arguments``, and where MMEngine's own runner can do it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--launcher', default='none')
    launcher = parser.parse_known_args(arguments)[0].launcher
    if launcher == 'none' or get_device() != 'cpu':
        return []
    return ['--cfg-options', 'runner_type=mmclipq.CpuRunner']


def run_mmdet_tool(name: str, arguments: list[str]) -> None:
    """Run mmdet's ``tools/<name>.py`` with ``arguments``.

    Raises:
        ClipQError: if there is no such config, mmdet was installed without its tools, or the tool
            meets an image or a file that cannot be read.
    """
    import mmdet

    folders = _shipped('tools')
    tool = next((folder / f'{name}.py' for folder in folders if folder.is_dir()), None)
    if tool is None or not tool.is_file():
        raise ClipQError(
            f'found no tools/{name}.py in mmdet {mmdet.__version__}, wanted the one that its '
            'package on PyPI carries; install mmdet from there'
        )
    if arguments and not arguments[0].startswith('-'):
        arguments = [find_config(arguments[0]), *arguments[1:]]
    mend_heads()
    sys.argv = [str(tool), *arguments]
    config = arguments[0] if arguments else name
    with unreadable_images_named(), refusals_told(config):
        runpy.run_path(str(tool), run_name='__main__')
