"""Writes files that are whole or absent, whatever interrupts it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


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


def _link_nameless(folder: Path, part: Path, data: bytes) -> bool:
    """Write a file that has no name until it is whole, so that a killed process leaves nothing.

    Returns:
        Whether the system can do that.

    Raises:
        OSError: if the data cannot be written.
    """
    try:
        handle = os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600)
    except (AttributeError, OSError):
        return False
    try:
        _fill(handle, data)
        try:
            # With a folder given the link of /proc is followed; its path is a whole one.
            os.link(f'/proc/self/fd/{handle}', part, src_dir_fd=handle)
        except OSError:
            return False
    finally:
        os.close(handle)
    return True


def _write_part(path: Path, data: bytes) -> Path:
    """A whole file beside ``path``, on the disk, which can take its place."""
    part = Path(tempfile.mktemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part'))
    try:
        if not _link_nameless(path.parent, part, data):
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                _fill(handle, data)
            finally:
                os.close(handle)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` to ``path`` so that the file is whole or absent, whenever it is interrupted.

    Raises:
        OSError: if the folder cannot be made or written; nothing is left behind.
    """
    write_all_atomically({Path(path): data})


def write_all_atomically(files: Mapping[Path, bytes]) -> None:
    """Write several files: all are whole on the disk before the first takes its place.

    Each then replaces an older one in an instant, in order. What can be interrupted is only the
    moment between them, so a reader of files that belong together must know which do.

    Raises:
        OSError: if a folder cannot be made or written; then no file is replaced.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path] = _write_part(path, data)
        for path in files:
            os.replace(parts[path], path)
            del parts[path]
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise
