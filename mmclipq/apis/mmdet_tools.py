"""Runs the tools that ship inside the mmdet package, so that flags and behaviour are its own."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import mmdet


def run_mmdet_tool(name: str) -> None:
    """Run mmdet's ``tools/<name>.py`` with the arguments of this process.

    Raises:
        SystemExit: with one sentence, if the config or checkpoint does not exist or mmdet was
            installed without its tools.
    """
    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    if not tool.is_file():
        tool = Path(mmdet.__file__).parents[1] / 'tools' / f'{name}.py'
    if not tool.is_file():
        sys.exit(f'found no tools/{name}.py in mmdet {mmdet.__version__}; install mmdet from PyPI')
    runpy.run_path(str(tool), run_name='__main__')
