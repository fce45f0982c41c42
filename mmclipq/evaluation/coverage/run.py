"""Tries many detectors, each in a process with limits, and keeps what was found."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mmdet
from tqdm import tqdm

from ..._compat import installed_versions
from ...errors import ClipQError
from ...graph.writing import write_atomically
from ...version import __version__
from ..own_process import environment_of
from .outcome import Outcome, Settings

_PATIENCE = 10
"""Times as long as the processor may be busy with a detector it may wait for other work."""


def made_with(settings: Settings) -> dict[str, Any]:
    """What outcomes depend on beside the detectors: versions, machine and settings."""
    versions = {'mmclipq': __version__, 'python': platform.python_version()}
    versions |= installed_versions()
    return {'versions': versions, 'machine': platform.machine(), 'settings': asdict(settings)}


def _place(config: str) -> Path:
    """Where to run: some of mmdet's configs name others by a path below the folder of configs."""
    package = Path(mmdet.__file__).parent
    for folder in (package / '.mim', package.parent):
        if (folder / 'configs').is_dir() and Path(config).is_relative_to(folder):
            return folder
    return Path.cwd()


def _ended(code: int, log: Path, settings: Settings) -> str:
    """Why a process ended that did not get to its end."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines()]
    last = next((line for line in reversed(lines) if line), 'it said nothing')
    if code == -signal.SIGXCPU:
        return f'found no end after {settings.seconds:g} seconds of processor time'
    if code < 0:
        name = signal.Signals(-code).name
        return f'the process was ended by {name}, perhaps for lack of memory ({last[:200]})'
    return f'the process ended with status {code} ({last[:200]})'


def try_one(config: str, settings: Settings) -> Outcome:
    """Take one config through all stages in a new process.

    Args:
        config: Path of the config.
        settings: How; a process that takes more time or memory ends.
    """
    config = str(Path(config).resolve())
    with tempfile.TemporaryDirectory() as folder:
        job = {'config': config, 'settings': asdict(settings), 'folder': folder}
        module = f'{__package__}.worker'
        command = [sys.executable, '-W', 'ignore', '-m', module, json.dumps(job)]
        log, reason = Path(folder) / 'log.txt', ''
        with log.open('w') as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                env=environment_of(settings.threads),
                cwd=_place(config),
            )
            try:
                process.wait(_PATIENCE * settings.seconds)
            except subprocess.TimeoutExpired:
                reason = f'found no end after {_PATIENCE * settings.seconds:g} seconds'
            finally:
                process.kill()
                process.wait()
        told = Path(folder) / 'outcome.json'
        outcome = Outcome(config, stage='build')
        if told.is_file():
            outcome = Outcome.from_dict(json.loads(told.read_text()))
        if outcome.seconds is None:  # set when all stages are over
            outcome.failures[outcome.stage] = reason or _ended(process.returncode, log, settings)
    return outcome


def _kept(path: Path, resume: bool, about: dict[str, Any]) -> dict[str, Outcome]:
    if not resume or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if found.get('made_with') != about:
        raise ClipQError(
            f'{path}: found outcomes made with {found.get("made_with")}, wanted {about}; name '
            'another file or leave out --resume'
        )
    return {name: Outcome.from_dict(value) for name, value in found['outcomes'].items()}


def cover(
    configs: Sequence[tuple[str, str]],
    settings: Settings,
    path: Path | None = None,
    resume: bool = False,
) -> list[Outcome]:
    """Try each of ``configs``, with a progress bar.

    Args:
        configs: Name, as outcomes shall have it, and path of each.
        settings: How.
        path: JSON file that holds all outcomes so far after each detector.
        resume: Whether outcomes that the file holds already are kept.

    Raises:
        ClipQError: if kept outcomes were made with other versions or settings.
    """
    about = made_with(settings)
    known = _kept(path, resume, about) if path else {}
    found = {name: known[name] for name, _ in configs if name in known}
    bar = tqdm(configs, unit='detector')
    for name, config in bar:
        bar.set_description(Path(name).stem)
        if name not in found:
            found[name] = try_one(config, settings)
            found[name].config = name
        if path:
            held = {key: outcome.as_dict() for key, outcome in {**known, **found}.items()}
            text = json.dumps({'made_with': about, 'outcomes': held}, indent=1) + '\n'
            write_atomically(path, text.encode())
    return [found[name] for name, _ in configs]
