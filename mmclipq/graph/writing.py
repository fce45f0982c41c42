"""Writes files that are whole or absent, whatever interrupts it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # where there are no locks, what killed writers left stays
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_ENDING = '[a-z0-9_]{8}'  # of a name that tempfile makes


def _permissions() -> int:
    """Permissions of a new file, which only setting the mask tells."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _fill(handle: int, data: bytes) -> None:
    """Write ``data`` to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fchmod(handle, _permissions())
    os.fsync(handle)


def _nameless(folder: Path, part: Path, data: bytes) -> int | None:
    """Write a file that has no name until it is whole, so that a killed process leaves nothing.

    Returns:
        Its handle, locked; None where the system cannot do that.

    Raises:
        OSError: if the data cannot be written.
    """
    try:
        handle = os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600)
    except (AttributeError, OSError):
        return None
    try:
        _fill(handle, data)
        try:
            _lock(handle)
            # With a folder given the link of /proc is followed; its path is a whole one.
            os.link(f'/proc/self/fd/{handle}', part, src_dir_fd=handle)
        except OSError:
            os.close(handle)
            return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock(handle: int, wait: bool = True) -> None:
    """Say that the writer of a file or folder lives; the system takes that back when it does not.

    Raises:
        OSError: if another one holds it and ``wait`` is False, or there are no locks.
    """
    if fcntl is None:
        raise OSError('no locks')
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _locked(path: Path, flags: int) -> int | None:
    """A locked handle of what was just made; None if a writer that cleans up took it for left."""
    handle = os.open(path, flags, 0o600)
    with contextlib.suppress(OSError):
        _lock(handle)
    if path.exists():
        return handle
    os.close(handle)
    return None


def _named(part: Path, data: bytes) -> int:
    """Write a file under a name of its own; returns its handle, locked."""
    handle = None
    while handle is None:
        handle = _locked(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        _fill(handle, data)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _write_part(path: Path, data: bytes) -> tuple[Path, int]:
    """A whole file beside ``path``, on the disk, which can take its place, and its handle."""
    part = Path(tempfile.mktemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part'))
    try:
        handle = _nameless(path.parent, part, data)
        return part, _named(part, data) if handle is None else handle
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove_left(folder: Path, pattern: str) -> None:
    """Remove what killed writers left in a folder; those that live keep theirs.

    Args:
        folder: The folder.
        pattern: Regular expression of the names of files or folders.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not re.fullmatch(pattern, path.name):
                continue
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY)
                try:
                    _lock(handle, wait=False)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                finally:
                    os.close(handle)


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None, prefix: str = 'mmclipq-') -> Iterator[Path]:
    """A folder that is gone afterwards; if the process is killed, with the next one made here.

    Args:
        parent: Where it is made; by default where the system has temporary files.
        prefix: What its name begins with.

    Raises:
        OSError: if it cannot be made.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_left(parent, re.escape(prefix) + _ENDING)
    handle = None
    while handle is None:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            handle = _locked(made, os.O_RDONLY)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(handle)


def replace_folder(new: Path, old: Path) -> None:
    """Let a folder take the place of an older one, which is then where the new one was.

    On Linux both change places in an instant. Elsewhere there is a moment without either.

    Raises:
        OSError: if that is not possible.
    """
    if not old.exists():
        new.rename(old)
        return
    with contextlib.suppress(AttributeError):
        exchange = ctypes.CDLL(None).renameat2
        names = os.fsencode(new), os.fsencode(old)
        if not exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
            return
    aside = new.with_name(f'{new.name}.old')
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` to ``path`` so that the file is whole or absent, whenever it is interrupted.

    Raises:
        OSError: if the folder cannot be made or written; nothing is left behind.
    """
    write_all_atomically({Path(path): data})


def write_figure(path: str | os.PathLike, figure: Any) -> None:
    """Write a figure of matplotlib as a PNG file that is whole or absent.

    Raises:
        OSError: as :func:`write_atomically` does.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format='png')
    write_atomically(path, content.getvalue())


def write_all_atomically(files: Mapping[Path, bytes]) -> None:
    """Write several files: all are whole on the disk before the first takes its place.

    Each then replaces an older one in an instant, in order. What can be interrupted is only the
    moment between them, so a reader of files that belong together must know which do. What killed
    writers of the same files left behind goes first.

    Raises:
        OSError: if a folder cannot be made or written; then no file is replaced.
    """
    parts: dict[Path, Path] = {}
    with contextlib.ExitStack() as handles:
        try:
            for path, data in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove_left(path.parent, re.escape(f'.{path.name}.') + _ENDING + r'\.part')
                parts[path], handle = _write_part(path, data)
                handles.callback(os.close, handle)
            for path in files:
                os.replace(parts[path], path)
                del parts[path]
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise
