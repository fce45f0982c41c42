"""What a long measurement has found so far, kept in a file so that it can go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import cannot_write
from ...graph.writing import write_atomically
from ...version import __version__


def fingerprint(model: nn.Module, *settings: Any) -> str:
    """Of a detector's weights and of what a measurement depends on otherwise."""
    digest = hashlib.sha256(repr((__version__, settings)).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()


class Progress:
    """Results by key, in memory or in a JSON file as well.

    A file of another measurement is not read, and is overwritten with the first result.

    Args:
        path: The file; None to keep nothing.
        mark: :func:`fingerprint` of the measurement.

    Attributes:
        resumed: How many results the file held.
    """

    def __init__(self, path: str | os.PathLike | None = None, mark: str = '') -> None:
        self.path, self._mark = None if path is None else Path(path), mark
        self._found: dict[str, Any] = {}
        if self.path is not None and self.path.is_file():
            with contextlib.suppress(ValueError, OSError):
                content = json.loads(self.path.read_text())
                if isinstance(content, Mapping) and content.get('of') == mark:
                    self._found = dict(content.get('found') or {})
        self.resumed = len(self._found)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._found[key] = value
        if self.path is not None:
            text = json.dumps({'of': self._mark, 'found': self._found})
            try:
                write_atomically(self.path, text.encode())
            except OSError as error:
                raise cannot_write(self.path, error) from error

    def done(self) -> None:
        """Remove the file: what it was kept for is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
