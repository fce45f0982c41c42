"""Sentences for what MMEngine's loops meet on the disk: images and data sets that are not there."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mmcv.transforms import LoadImageFromFile

from ..errors import ClipQError, first_line

_REFUSALS = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
             errno.EIO}  # fmt: skip
_MARK = 'ClipQError: '


def unreadable_image(path: object, error: Exception) -> ClipQError:
    """The error for an image of a data set that cannot be read."""
    return ClipQError(
        f'{path}: found no readable image ({first_line(error)}), wanted the one that the '
        'annotations name; restore it, or check data_root'
    )


@contextmanager
def unreadable_images_named() -> Iterator[None]:
    """Inside, an image that cannot be read is an error that names it, in loaders' workers, too.

    Raises:
        ClipQError: naming the file.
    """
    load = LoadImageFromFile.transform

    def transform(self: LoadImageFromFile, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return load(self, results)
        except Exception as error:  # OpenCV's and the file system's own ones
            raise unreadable_image(results.get('img_path'), error) from error

    with mock.patch.object(LoadImageFromFile, 'transform', transform):
        try:
            yield
        except ClipQError as error:
            text = str(error)
            if _MARK not in text:
                raise
            # A loader's worker sends its traceback instead of its error.
            raise ClipQError(text.rpartition(_MARK)[2].strip().splitlines()[0]) from error


@contextmanager
def refusals_told(name: str) -> Iterator[None]:
    """Inside, what the system refuses is an error that begins with ``name``.

    Raises:
        ClipQError: for a file that is not there, a folder without permission, a full disk.
    """
    try:
        yield
    except OSError as error:
        found = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
        if not found and error.errno not in _REFUSALS:
            raise
        raise ClipQError(
            f'{name}: found that {first_line(error)}, wanted files that can be read and folders '
            'that can be written to; check data_root and --work-dir'
        ) from error
