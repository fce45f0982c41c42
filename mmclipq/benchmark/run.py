"""One run of the benchmark: all rows on one device, in turn, with their tables and figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .._compat import installed_versions
from ..apis.mmdet_tools import check_device
from ..backends import build_backend
from ..detector import Int8Detector, plain_samples
from ..errors import ClipQError
from ..graph import ir
from . import cuda_peers
from .parts import Run, Setting
from .peers import PEERS, Peer, Subject
from .time_profile import profile_prediction, profile_table
from .timing import Timing, operations, peak_run, table, time_in_turn, wall_clock

_PACKAGES = ('torch', 'mmdet', 'mmcv', 'onnxruntime', 'openvino', 'nncf')


@dataclass(frozen=True)
class Platform:
    """A device with its rows and what times them.

    Attributes:
        device: Where images lie.
        peers: Rows by name; ratios are to the first.
        batches: Sizes by default.
        timer: Milliseconds of a run that it is given.
        clock: Seconds, when all that was launched has ended.
        peak: Makes what does int8 operations at the highest rate, and returns how many.
        peak_name: What :attr:`peak` does, in words.
        about: The device in words, for the figures.
    """

    device: torch.device
    peers: Mapping[str, Peer]
    batches: tuple[int, ...]
    timer: Callable[[Run], float]
    clock: Callable[[], float]
    peak: Callable[[], Callable[[], int]]
    peak_name: str
    about: dict[str, Any] = field(default_factory=dict)

    def machine(self) -> dict[str, Any]:
        """What the figures are measured on."""
        versions = installed_versions(_PACKAGES)
        instructions = os.environ.get('ONEDNN_MAX_CPU_ISA', 'all')
        processors = {'processors': os.cpu_count(), 'instructions': instructions}
        return {**self.about, **processors, 'versions': versions}


def find_platform(device: str) -> Platform:
    """The platform called ``cpu``, ``cuda`` or, for one GPU of several, ``cuda:1``.

    Raises:
        ClipQError: if there is no such device.
    """
    found = check_device(device)
    if found.type == 'cpu':
        name = 'multiply-add instructions on registers alone'
        return Platform(found, PEERS, (1, 8), wall_clock, time.perf_counter, peak_run, name)
    if found.type != 'cuda':
        raise ClipQError(f'--device {device}: found no CPU or GPU of CUDA, wanted cpu or cuda')
    gpu = cuda_peers.use_gpu(found)
    return Platform(
        gpu,
        cuda_peers.CUDA_PEERS,
        (1, 8, 32),
        cuda_peers.EventTimer(),
        cuda_peers.synchronized_clock,
        cuda_peers.int_mm_run,
        cuda_peers.PEAK,
        cuda_peers.describe(gpu),
    )


def save_files(
    platform: Platform, wanted: Sequence[str], subject: Subject, folder: Path
) -> dict[str, Path]:
    """Each row's file by its name, without rows that cannot run here, which are told."""
    files = {}
    for name in wanted:
        if reason := platform.peers[name].missing:
            print(f'{name}: left out, {reason}')
            continue
        print(f'{name}: preparing')
        with torch.no_grad():
            files[name] = platform.peers[name].save(subject, folder)
    return files


def count_operations(subject: Subject, setting: Setting) -> tuple[float, float]:
    """Operations in units of 10^9 per image: of the dense part, and of the regions, 0 without."""
    shapes: dict[str, Any] = {}

    def note(node: Any, value: Any) -> None:
        if isinstance(node, ir.Product):
            shapes[node.name] = value.shape

    device = str(setting.images.device)
    dense, *boxes = subject.quantized.graphs
    islands = subject.model.to(device)
    outputs = build_backend('auto', dense, islands, device).run(setting.images[:1], observe=note)
    work, of_regions = operations(dense, shapes), 0.0
    for graph in boxes:
        inputs = sum(isinstance(node, ir.Input) for node in graph.nodes)
        levels = outputs['features'][: inputs - 1]
        backend = build_backend('auto', graph, islands, device)
        backend.run(*levels, Setting(setting.cfg, setting.images[:1], 1).regions(), observe=note)
        of_regions += operations(graph, shapes)
    return work, of_regions


class Comparison:
    """Times all rows and prints the tables.

    Args:
        platform: Where.
        files: From :func:`save_files`.
        rounds: At batch 1; of larger batches and of ways to boxes a third is timed.
        work: From :func:`count_operations`.

    Attributes:
        figures: For JSON.
        panels: Timings by the title of their table.
    """

    def __init__(
        self,
        platform: Platform,
        files: Mapping[str, Path],
        rounds: int,
        work: tuple[float, float],
    ) -> None:
        self.platform, self.files, self.rounds = platform, files, rounds
        self.work, self.work_of_regions = work
        self.figures: dict[str, Any] = {
            'giga_operations': self.work,
            'giga_operations_of_regions': self.work_of_regions,
            'machine': platform.machine(),
            'int8_peak': platform.peak_name,
            'dense': [],
            'regions': [],
            'whole': [],
            'left_out': [],
        }
        self.panels: dict[str, list[Timing]] = {}

    def run(self, setting: Setting) -> None:
        """Time all rows that execute ``setting``."""
        torch.set_num_threads(setting.threads)
        batch = len(setting.images)
        fewer = max(3, self.rounds // 3)
        loads = {name: self.platform.peers[name].load for name in self.files}
        rounds = self.rounds if batch == 1 else fewer
        self._products('dense', 'dense part', setting, loads, rounds, self.work)
        if batch > 1:
            return
        if self.work_of_regions:
            loads = self._others('regions')
            count = len(setting.regions())
            title = f'RoIAlign and box heads, {count} regions'
            self._products('regions', title, setting, loads, rounds, self.work_of_regions)
        self._whole(setting, fewer)

    def _others(self, attribute: str) -> dict[str, Callable[[Setting, Path], Any]]:
        loads = {name: getattr(self.platform.peers[name], attribute) for name in self.files}
        return {name: load for name, load in loads.items() if load is not None}

    def _ready(
        self,
        title: str,
        setting: Setting,
        loads: Mapping[str, Callable[[Setting, Path], Any]],
        as_run: Callable[[Any], Run] = lambda loaded: loaded,
    ) -> tuple[dict[str, Run], dict[str, Any]]:
        """What runs, by row, and what was loaded; rows that fail are left out and told."""
        runs, kept = {}, {}
        for name, load in loads.items():
            try:
                with torch.no_grad():
                    loaded = load(setting, self.files[name])
                    run = as_run(loaded)
                    run()
                    self.platform.clock()  # shows errors of what was only launched so far
            except Exception as error:
                lines = str(error).strip().splitlines() or ['no reason given']
                reason = f'{type(error).__name__}: {lines[0]}'
                print(f'{name}: left out of {title}, {reason}')
                self.figures['left_out'].append({'row': name, 'table': title, 'reason': reason})
            else:
                runs[name], kept[name] = run, loaded
        return runs, kept

    def _products(
        self,
        part: str,
        title: str,
        setting: Setting,
        loads: Mapping[str, Callable[[Setting, Path], Run]],
        rounds: int,
        work: float,
    ) -> None:
        """Table and figures of a part that mostly multiplies, with its share of the int8 peak."""
        title, batch = f'{title}, {setting}', len(setting.images)
        runs, _ = self._ready(title, setting, loads)
        if not runs:
            return
        done: list[int] = []
        try:
            peak = self.platform.peak()
            peak()
        except (ClipQError, RuntimeError) as error:
            print(f'int8 peak: not measured, {str(error).splitlines()[0]}')
        else:
            runs['peak'] = lambda: done.append(peak())
        timings = time_in_turn(runs, rounds, self.platform.timer)
        row: dict[str, Any] = {'threads': setting.threads, 'batch': batch}
        share = {}
        if done:
            speed = done[-1] / timings.pop().median * 1000 / 1e9
            share = {t.name: work * batch / t.median * 1000 / speed for t in timings}
            row['int8_peak_giga_operations_per_second'] = speed
            print(f'\nint8 peak: {speed / 1000:.2f} TOP/s, {self.platform.peak_name}')
        self._keep(part, title, timings, batch, share, row)

    def _whole(self, setting: Setting, rounds: int) -> None:
        title = f'image tensor to boxes, {setting}'
        images = setting.images

        def as_run(detector: Any) -> Run:
            return lambda: detector.predict(images, plain_samples(images))

        runs, detectors = self._ready(title, setting, self._others('whole'), as_run)
        if not runs:
            return
        timings = time_in_turn(runs, rounds, self.platform.timer)
        row = {'threads': setting.threads, 'batch': 1, 'profile': {}}
        self._keep('whole', title, timings, 1, {}, row)
        ours = [name for name in runs if isinstance(detectors[name], Int8Detector)]
        if ours:  # the last is the fastest
            name = ours[-1]
            steps = profile_prediction(detectors[name], runs[name], rounds, self.platform.clock)
            print(profile_table(steps, f'{name}, {title}'))
            row['profile'] = steps

    def _keep(
        self, part: str, title: str, timings: list[Timing], batch: int, share: Any, row: Any
    ) -> None:
        print(table(title, timings, batch, share))
        row['rows'] = [t.as_dict() for t in timings]
        self.figures[part].append(row)
        self.panels[title] = timings
