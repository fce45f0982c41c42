"""Inside, a file's content builds things, but reads no other file, starts nothing and calls nobody.

Checks of the content come first; this is the second wall, for what they may have overlooked. Python
reports what its libraries do to *audit hooks*; ours refuses while the content of a file is at work
in the same thread.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ClipQError

_REFUSED = (
    'os.exec', 'os.fork', 'os.kill', 'os.posix_spawn', 'os.spawn', 'os.startfile', 'os.system',
    'pickle.find_class', 'pty.spawn', 'shutil.', 'socket.bind', 'socket.connect',
    'socket.getaddrinfo', 'socket.sendto', 'subprocess.Popen', 'urllib.Request', 'webbrowser.open',
)  # fmt: skip
"""First parts of events that no building of a detector needs."""
_state = threading.local()


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Folders that Python's own library and installed packages lie in."""
    found = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
    found |= {entry for entry in sys.path if entry and os.path.isdir(entry)}
    found |= {str(Path(__file__).parents[2]), '/usr/share', '/usr/lib', '/etc', '/proc', '/sys'}
    return tuple(os.path.realpath(folder) for folder in found)


def _is_library(path: Any, mode: Any, flags: Any) -> bool:
    """Whether opening ``path`` reads a library's own file."""
    if isinstance(path, int):
        return True
    writes = isinstance(mode, str) and any(letter in mode for letter in 'wax+')
    if isinstance(flags, int):
        writes = writes or bool(flags & (os.O_WRONLY | os.O_RDWR))
    whole = os.path.realpath(os.fsdecode(path))
    if whole == os.devnull:
        return True
    # Python writes the bytecode of what it imports for the first time.
    return whole.startswith(_libraries()) and (not writes or '__pycache__' in whole)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    path = getattr(_state, 'path', None)
    if path is None:
        return
    allowed = not event.startswith(_REFUSED)
    if event == 'open':
        _state.path = None  # resolving a path opens nothing, but tells of itself
        try:
            allowed = _is_library(*args)
        finally:
            _state.path = path
    if not allowed:
        raise ClipQError(
            f'{path}: found content that makes a library call {event} {str(args[:1])[:80]}, wanted '
            'a file that stands alone; do not trust it'
        )


@functools.cache
def _install() -> None:
    _libraries()
    tempfile.gettempdir()  # tries once where it can write, for libraries that are imported later
    sys.addaudithook(_hook)


@contextmanager
def guarded(path: str | os.PathLike) -> Iterator[None]:
    """Inside, in this thread, Python code opens no file but those of libraries and starts nothing.

    It is no prison for code that is bound to break out: there is none in a file, and what libraries
    do by themselves goes through Python.

    Args:
        path: The file that is being built, named in the error.
    """
    _install()
    before = getattr(_state, 'path', None)
    _state.path = os.fspath(path)
    try:
        yield
    finally:
        _state.path = before
