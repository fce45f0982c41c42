"""Runs a tool in a copy of this process and kills it, with all that it started, at some moment.

The copy has everything imported, so that a run takes what the tool itself takes. The process that
makes copies must not have run PyTorch's backward pass or a foreign runtime: their threads are not
copied.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATHS = {'os.rename': 2, 'os.remove': 1, 'os.link': 2, 'os.mkdir': 1, 'os.rmdir': 1}
"""Events of Python's audit, and how many of their first arguments are paths."""
SECONDS = 120.0
"""Most that a run may take."""


@dataclass(frozen=True)
class Moment:
    """When a run is killed: ``seconds`` after its ``step``-th step, or after its start for 0.

    A step is a change of a file under the watched folder: opened to write, renamed, removed.
    """

    step: int
    seconds: float


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        killed: Whether it was killed; otherwise it had ended before its moment.
        code: What it exited with.
        steps: Steps that it took.
        seconds: How long it took.
    """

    killed: bool
    code: int
    steps: int
    seconds: float


def moment(rng: random.Random, steps: int, seconds: float) -> Moment:
    """A random moment of a run: half of them at any time, half of them within 3 ms of a step."""
    if rng.random() < 0.5 or not steps:
        return Moment(0, rng.uniform(0, seconds))
    return Moment(rng.randint(1, steps), rng.uniform(0, 0.003))


def _watch(folder: Path, pipe: int) -> None:
    """Write a byte before every step of this process, not of those that it starts."""
    owner, root = os.getpid(), os.fsencode(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == 'open':
            flags = arguments[2]
            paths = arguments[:1] if isinstance(flags, int) and flags & _WRITES else ()
        else:
            paths = arguments[: _PATHS.get(event, 0)]
        inside = (isinstance(p, (str, bytes, os.PathLike)) and os.fsencode(p).startswith(root)
                  for p in paths)  # fmt: skip
        if any(inside) and os.getpid() == owner:
            os.write(pipe, b'.')

    sys.addaudithook(hook)


def _copy(tool: str, arguments: Sequence[str], folder: Path, pipe: int) -> None:
    """What the copy of this process does; never returns."""
    code = 1
    try:
        os.setsid()
        end_with_parent()
        output = os.open(folder.with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(output, stream)
        temporary = folder / 'tmp'
        temporary.mkdir(exist_ok=True)
        os.environ['TMPDIR'] = tempfile.tempdir = str(temporary)
        sys.argv = [tool, *arguments]
        _watch(folder, pipe)
        os.write(pipe, b'.')
        importlib.import_module('_tool').run(importlib.import_module(tool).main)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_tool(tool: str, arguments: Sequence[str], folder: Path, when: Moment | None = None) -> End:
    """Run ``tools/TOOL.py`` in a copy of this process, to its end or until a moment.

    Args:
        tool: Name of its module.
        arguments: Its command line.
        folder: Where it writes; what it prints goes to the file beside it, ``FOLDER.log``. Its
            temporary files are in ``FOLDER/tmp``.
        when: When it is killed with SIGKILL, and all of its process group.
    """
    read, write = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.close(read)
        _copy(tool, arguments, folder, write)
    os.close(write)
    steps, limit, killed = -1, SECONDS, False  # the first byte says that it has begun
    try:
        while True:
            if when and steps >= when.step:
                limit = min(limit, time.monotonic() - start + when.seconds)
                when = None
            left = start + limit - time.monotonic()
            ready, _, _ = select.select([read], [], [], max(0.0, left))
            if not ready:
                _kill(child)
                killed = True
                break
            found = os.read(read, 1 << 12)
            if not found:
                break
            steps += len(found)
    except BaseException:
        _kill(child)
        raise
    finally:
        os.close(read)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return End(killed and code == -signal.SIGKILL, code, steps, time.monotonic() - start)


def _kill(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # before it has a group of its own
        os.kill(child, signal.SIGKILL)


def end_with_parent() -> None:
    """Let the system end this process when the one that started it is killed (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
