"""Runs the tools that ship inside the mmdet package, so that flags and behaviour are its own."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ClipQError


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Ends the process with the sentence of a :class:`ClipQError` instead of a traceback."""
    try:
        yield
    except ClipQError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        print('interrupted; nothing half-written was left', file=sys.stderr)
        sys.exit(130)


def check_file(path: str, wanted: str) -> None:
    """Return if ``path`` is a file.

    Raises:
        ClipQError: naming the path and what was wanted.
    """
    if not Path(path).is_file():
        raise ClipQError(f'{path}: found no file, wanted {wanted}')


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
    found = []
    if name and not Path(name).is_absolute() and '..' not in Path(name).parts:
        found = [path for folder in _shipped('configs') for path in folder.rglob(name)]
    if len(found) != 1:
        several = f'found {len(found)} configs of mmdet' if found else 'found no file'
        raise ClipQError(
            f"{name}: {several}, wanted a detector config, or the name of one of mmdet's"
        )
    return str(found[0])


def check_device(name: str) -> None:
    """Return if torch can use the device called ``name``.

    Raises:
        ClipQError: naming it and what was wanted.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ClipQError(f'--device {name}: found no such device, wanted cpu or cuda') from None
    gpus = torch.cuda.device_count()
    if device.type == 'cuda' and (device.index or 0) >= gpus:
        raise ClipQError(
            f'--device {name}: torch {torch.__version__} finds {gpus} GPUs, wanted this one; use '
            '--device cpu'
        )


def run_mmdet_tool(name: str, arguments: list[str]) -> None:
    """Run mmdet's ``tools/<name>.py`` with ``arguments``.

    Raises:
        ClipQError: if there is no such config or mmdet was installed without its tools.
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
    sys.argv = [str(tool), *arguments]
    runpy.run_path(str(tool), run_name='__main__')
