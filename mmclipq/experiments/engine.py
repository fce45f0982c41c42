"""Does jobs that are not done yet, each in a process of its own, and keeps what they found."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..errors import ClipQError
from .files import DESCRIPTION, LOG, RESULT, job_config, write
from .recipe import Job

POLL_SECONDS = 0.2


class Process(Protocol):
    """A job that runs; ``subprocess.Popen`` is one."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


def start_worker(folder: Path, threads: int | None) -> Process:
    """Start the process that does the job described in ``folder``."""
    environment = dict(os.environ, PYTHONWARNINGS='ignore')
    if threads is not None:
        environment['OMP_NUM_THREADS'] = str(threads)
    command = [sys.executable, '-m', f'{__package__}.worker', str(folder)]
    with (folder / LOG).open('ab') as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def cost(job: Job) -> float:
    """Share of a job in the bar: epochs of a training; all others take little."""
    if job.kind != 'train':
        return 0.3
    return float(job_config(job.config).get('train_cfg', {}).get('max_epochs', 1))


class Store:
    """The folder in which each job has its own folder.

    Args:
        folder: Made when the first job is done.
        start: Starts what does the job described in a folder.
    """

    def __init__(self, folder: Path, start: Any = start_worker) -> None:
        self.folder, self.start = Path(folder), start

    def path(self, job: Job) -> Path:
        return self.folder / 'runs' / job.folder

    def result(self, job: Job) -> Mapping[str, Any] | None:
        """What a job found; None if it is not done."""
        try:
            found = json.loads((self.path(job) / RESULT).read_text())
        except (OSError, ValueError):
            return None
        return found if found.get('key') == job.key else None

    def describe(self, job: Job) -> Path:
        """Write what the worker reads; returns the job's folder."""
        folder = self.path(job)
        folder.mkdir(parents=True, exist_ok=True)
        needs = {need.key: str(self.path(need)) for need in job.needs}
        fields = {name: getattr(job, name) for name in ('kind', 'name', 'key', 'content', 'config')}
        write(folder / DESCRIPTION, {**fields, 'needs': needs})
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process works in the folder.

        Raises:
            ClipQError: if one does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / '.lock').open('w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClipQError(
                    f'{self.folder}: found another process at work there, wanted none; wait for '
                    'it, print what it has with --report, or take another --work-dir'
                ) from None
            yield

    def run(self, jobs: Iterable[Job], at_once: int = 1) -> list[str]:
        """Do all ``jobs`` and what they need, in their order, unless that is done.

        Args:
            jobs: The jobs.
            at_once: How many run at the same time.

        Returns:
            A sentence for each job that failed; what needs it was left out.
        """
        chain = {one.key: one for job in jobs for one in job.chain()}
        left = [job for job in chain.values() if self.result(job) is None]
        if not left:
            return []
        with self.locked():
            return _Schedule(self, left, at_once).run()


class _Schedule:
    """Jobs that are left, running and failed."""

    def __init__(self, store: Store, jobs: list[Job], at_once: int) -> None:
        self.store, self.waiting, self.at_once = store, list(jobs), at_once
        self.running: dict[str, tuple[Job, Process]] = {}
        self.failed: dict[str, str] = {}
        cores = os.cpu_count() or 1
        self.threads = max(1, cores // at_once) if at_once > 1 else None

    def run(self) -> list[str]:
        total = sum(map(cost, self.waiting))
        form = '{l_bar}{bar}| {n:.1f}/{total:.1f} [{elapsed}<{remaining}{postfix}]'
        with tqdm(total=total, desc='runs', unit='epoch', bar_format=form) as bar:
            try:
                while self.waiting or self.running:
                    self._start()
                    self._collect(bar)
                    self._show(bar)
                    time.sleep(POLL_SECONDS)
            finally:
                for _, process in self.running.values():
                    process.terminate()
                for _, process in self.running.values():
                    process.wait()
        return list(self.failed.values())

    def _show(self, bar: tqdm) -> None:
        left = f', {len(self.waiting) + len(self.running)} runs left'
        if left != bar.postfix:
            bar.set_postfix_str(left)
        elif sys.stderr.isatty():
            bar.display()  # the time passed

    def _start(self) -> None:
        for job in list(self.waiting):
            if len(self.running) >= self.at_once:
                return
            lost = next((need for need in job.needs if need.key in self.failed), None)
            if lost is not None:
                self.waiting.remove(job)
                self.failed[job.key] = f'{job.name}: left out, because "{lost.name}" failed'
            elif all(self.store.result(need) is not None for need in job.needs):
                self.waiting.remove(job)
                tqdm.write(f'start: {job.name}', file=sys.stderr)
                process = self.store.start(self.store.describe(job), self.threads)
                self.running[job.key] = job, process

    def _collect(self, bar: tqdm) -> None:
        for key, (job, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[key]
            bar.update(cost(job))
            if self.store.result(job) is None:
                log = self.store.path(job) / LOG
                self.failed[key] = f'{job.name}: failed ({code}), {_last_line(log)}; see {log}'
                tqdm.write(self.failed[key], file=sys.stderr)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors='replace').strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].strip()[:200] if lines else 'without a word'
