"""Times runs in turn, so that all of them meet the same machine, and tabulates them."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors import ClipQError
from ..graph import ir
from ..graph.writing import write_figure
from ..ops.cpu.library import follow_torch_threads, library
from .parts import Run, Setting
from .peers import PEERS, size_of


@dataclass
class Timing:
    """Milliseconds of one run: median, least and largest of all rounds."""

    name: str
    median: float
    least: float
    largest: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Start:
    """What it takes to have a first result in a fresh process.

    Attributes:
        name: The row.
        file: Bytes of the file.
        load: Seconds from the file to a loaded model.
        first: Seconds of the first run.
        memory: Bytes of resident memory at the peak, beyond those before loading.
    """

    name: str
    file: int
    load: float
    first: float
    memory: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wall_clock(run: Run) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


@torch.no_grad()
def time_in_turn(
    runs: Mapping[str, Run], rounds: int, timer: Callable[[Run], float] = wall_clock
) -> list[Timing]:
    """Time each of ``runs`` once per round, after two rounds that do not count.

    Args:
        runs: By the name of the row.
        rounds: How many count.
        timer: Gives the milliseconds of a run that it is given.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in tqdm(range(rounds + 2), desc='rounds', unit='round', leave=False):
        for name, run in runs.items():
            passed = timer(run)
            if index > 1:
                times[name].append(passed)
    return [
        Timing(name, sorted(found)[len(found) // 2], min(found), max(found))
        for name, found in times.items()
    ]


def peak_run(rounds: int = 200_000) -> Callable[[], int]:
    """Int8 multiply-add instructions on registers alone; a call returns the operations it did.

    It uses the instructions that oneDNN uses on this processor, on as many threads as torch's. A
    product of 8 bits is two operations, as in :func:`operations`.

    Raises:
        ClipQError: if the CPU operators cannot run here.
    """
    loaded = library()

    def run() -> int:
        follow_torch_threads()
        return loaded.clipq_peak(rounds)

    return run


def operations(graph: ir.Int8Graph, shapes: Mapping[str, Sequence[int]]) -> float:
    """Multiplications and additions of all products, in units of 10^9.

    Args:
        graph: The integer graph.
        shapes: Shape of each product's result.
    """
    total = 0
    for node in graph.products():
        total += 2 * torch.Size(shapes[node.name]).numel() * graph.constants[node.weight][0].numel()
    return total / 1e9


def _resident_memory() -> tuple[int, int]:
    """Bytes of resident memory now and at this process's peak; macOS tells the peak alone."""
    status = Path('/proc/self/status')
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    # Unlike ru_maxrss the peak here starts anew with the program, not with its parent's memory.
    fields = dict(line.split(':', 1) for line in status.read_text().splitlines())
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ('VmRSS', 'VmHWM'))
    return now, peak


@torch.no_grad()
def measure_start(name: str, setting: Setting, path: Path) -> Start:
    """Load a peer's file and run it once, in this process, which should be a fresh one."""
    torch.set_num_threads(setting.threads)
    before, _ = _resident_memory()
    begin = time.perf_counter()
    run = PEERS[name].load(setting, path)
    loaded = time.perf_counter()
    run()
    end = time.perf_counter()
    _, peak = _resident_memory()
    return Start(name, size_of(path), loaded - begin, end - loaded, peak - before)


def start_in_a_process(command: Sequence[str]) -> Start:
    """Run ``command``, whose last line of output is a :class:`Start` as JSON.

    Raises:
        ClipQError: if the process fails; the last line of what it said is given.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ['nothing'])[-1]
        raise ClipQError(f'{" ".join(map(str, command[-2:]))}: found no start ({reason})')
    return Start(**json.loads(done.stdout.strip().splitlines()[-1]))


def digits(milliseconds: float) -> str:
    """With one decimal, and below 10 ms with two more, so that the figures of GPUs are told."""
    return f'{milliseconds:.{1 if milliseconds >= 10 else 3}f}'


def table(title: str, timings: Sequence[Timing], images: int, share: Mapping[str, float]) -> str:
    """Markdown table of one setting; ratios are to the first row.

    Args:
        title: Heading of the first column.
        timings: One for each row.
        images: Images of one run.
        share: Operations per second over the int8 peak, by row.
    """
    lines = [
        f'| {title} | ms (min to max) | images/s | times faster | of the int8 peak |',
        '|---|---|---|---|---|',
    ]
    for t in timings:
        part = f'{share[t.name]:.0%}' if t.name in share else ''
        lines.append(
            f'| {t.name} | {digits(t.median)} ({digits(t.least)} to {digits(t.largest)}) '
            f'| {1000 * images / t.median:.1f} | {timings[0].median / t.median:.2f} | {part} |'
        )
    return '\n'.join(lines)


def start_table(starts: Sequence[Start]) -> str:
    """Markdown table of what a start takes."""
    lines = [
        '| start | file, MiB | load, s | first image, s | peak memory, MiB |',
        '|---|---|---|---|---|',
    ]
    for s in starts:
        lines.append(
            f'| {s.name} | {s.file / 2**20:.1f} | {s.load:.2f} | {s.first:.2f} '
            f'| {s.memory / 2**20:.0f} |'
        )
    return '\n'.join(lines)


def draw(panels: Mapping[str, Sequence[Timing]], path: Path, title: str) -> None:
    """Draw bars of the median times, with least and largest, a panel for each setting.

    Args:
        panels: Timings by the setting's name.
        path: PNG file, written whole or not at all.
        title: Above all panels.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows = max(len(timings) for timings in panels.values())
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(6 * columns, (0.35 * rows + 1) * lines + 0.4), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis('off')
    for axis, (name, timings) in zip(axes.flat, panels.items(), strict=False):
        medians = [t.median for t in timings]
        spread = [[t.median - t.least for t in timings], [t.largest - t.median for t in timings]]
        colours = ['#c44e52' if t.name.startswith('mmclipq') else '#8da0b6' for t in timings]
        names = [t.name for t in timings]
        bars = axis.barh(names, medians, xerr=spread, color=colours, ecolor='#444444', capsize=2)
        # Beside the bar and its spread.
        labels = [f' {digits(m)}' for m in medians]
        for bar, timing, label in zip(bars, timings, labels, strict=True):
            middle = bar.get_y() + bar.get_height() / 2
            axis.text(timing.largest, middle, label, va='center', fontsize=8)
        axis.set_xlim(0, 1.15 * max(t.largest for t in timings))
        axis.invert_yaxis()
        axis.set_title(name, fontsize=10)
        axis.set_xlabel('ms')
        axis.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    try:
        write_figure(path, figure)
    finally:
        plt.close(figure)
