"""Runs several tools one after the other in one process, as each would run in one of its own.

Imports take most of the seconds of a small tool. ``session.py LIST.json`` with a list of commands,
``[tool, argument, ...]`` each; what each writes to its log is in its own work folder.
"""

import json
import runpy
import sys
from pathlib import Path


def run_all(commands: list[list[str]]) -> None:
    for tool, *arguments in commands:
        sys.argv = [tool, *arguments]
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as end:
            if end.code not in (None, 0):
                raise


if __name__ == '__main__':
    # A tool finds its neighbours beside itself.
    commands = json.loads(Path(sys.argv[1]).read_text())
    sys.path[0] = str(Path(commands[0][0]).parent)
    run_all(commands)
