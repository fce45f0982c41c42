"""Measures many detectors, each in a process of its own, and keeps what was found."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from tqdm import tqdm

from ..._compat import installed_versions
from ...errors import ClipQError
from ...version import __version__
from ..own_process import environment_of
from .entries import Entry, is_address
from .worker import FAILURE, ROW


@dataclass(frozen=True)
class Settings:
    """How all detectors are measured.

    Attributes:
        data_root: Where the data set lies, if not where the configs say.
        calib_images: How many images calibrate; by default as each config says.
        threads: torch's.
    """

    data_root: str | None = None
    calib_images: int | None = None
    threads: int = 1


def versions() -> dict[str, str]:
    """What was installed."""
    return {'mmclipq': __version__, **installed_versions()}


def _key(entry: Entry, settings: Settings) -> str:
    """Digest of all that a row depends on."""
    about: dict[str, Any] = {**entry.as_dict(), **asdict(settings), **versions()}
    about['config'] = Config.fromfile(entry.config).pretty_text
    if not is_address(entry.checkpoint):
        state = os.stat(entry.checkpoint)
        about['checkpoint'] = [entry.checkpoint, state.st_size, state.st_mtime_ns]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _known(folder: Path, key: str) -> dict[str, Any] | None:
    """The row of an earlier run of the same, whose file is still there."""
    path = folder / ROW
    if not path.is_file():
        return None
    row = json.loads(path.read_text())
    return row if row.pop('key') == key and (folder / row['file']).is_file() else None


def _measured(entry: Entry, settings: Settings, out: Path, key: str) -> dict[str, Any]:
    """The row of a new run, or ``{'failure': ...}``."""
    folder = out / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ROW, FAILURE):
        (folder / name).unlink(missing_ok=True)
    job = {
        'entry': entry.as_dict(), 'folder': str(folder), 'downloads': str(out / 'checkpoints'),
        'key': key, **asdict(settings),
    }  # fmt: skip
    command = [sys.executable, '-W', 'ignore', '-m', f'{__package__}.worker', json.dumps(job)]
    with (folder / 'log.txt').open('w') as log:  # its progress bars are shown
        code = subprocess.run(command, stdout=log, env=environment_of(settings.threads)).returncode
    if code == 0:
        row = _known(folder, key)
        assert row is not None
        return row
    if (folder / FAILURE).is_file():
        return {'failure': (folder / FAILURE).read_text()}
    end = f'by {signal.Signals(-code).name}' if code < 0 else f'with status {code}'
    return {'failure': f'the process ended {end}; see {folder / "log.txt"} and what it printed'}


def fill(entries: Sequence[Entry], settings: Settings, out: Path) -> dict[str, dict[str, Any]]:
    """Measure what ``out`` does not hold already; a detector that fails does not stop the others.

    Args:
        entries: Which detectors.
        settings: How.
        out: Folder of the zoo, with one folder for each detector.

    Returns:
        Of each entry's name the fields of :class:`~mmclipq.evaluation.zoo.measure.Row`, or
        ``failure`` with a sentence.

    Raises:
        ClipQError: if two entries have one name.
    """
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ClipQError(f'{twice}: found two detectors of this name, wanted a name for each')
    found = {}
    bar = tqdm(entries, unit='detector')
    for entry in bar:
        bar.set_description(entry.name)
        key = _key(entry, settings)
        known = _known(out / entry.name, key)
        found[entry.name] = _measured(entry, settings, out, key) if known is None else known
    return found
