"""The benchmark on a GPU: its rows, its timer, and the int8 peak that is measured there."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import BACKENDS
from .parts import FloatWay, Int8Way, Run
from .peers import Peer, save_ours, save_state


def use_gpu(device: torch.device) -> torch.device:
    """The GPU with its number, made the current one, where cuDNN takes its fastest kernels."""
    found = torch.device('cuda', device.index or 0)
    torch.cuda.set_device(found)
    torch.backends.cudnn.benchmark = True
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """Name and compute capability of a GPU, and the versions of CUDA and cuDNN under torch."""
    major, minor = torch.cuda.get_device_capability(device)
    return {
        'gpu': torch.cuda.get_device_name(device),
        'capability': f'{major}.{minor}',
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
    }


def synchronized_clock() -> float:
    """Seconds, when all that was launched has ended."""
    torch.cuda.synchronize()
    return time.perf_counter()


class EventTimer:
    """Milliseconds per run, between two events on the current stream around many runs.

    Runs follow each other as closely as Python launches them. All rows meet their weights in the
    GPU's cache as far as these fit.

    Args:
        repeats: Runs between the events.
        new_event: Makes an event that tells times; by default torch's.
    """

    def __init__(
        self,
        repeats: int = 20,
        new_event: Callable[[], Any] | None = None,
    ) -> None:
        self.repeats = repeats
        self.new_event = new_event or functools.partial(torch.cuda.Event, enable_timing=True)

    def __call__(self, run: Run) -> float:
        start, end = self.new_event(), self.new_event()
        start.record()
        for _ in range(self.repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.repeats


def record(step: Run) -> tuple[Run, Any]:
    """The CUDA graph of ``step``: what replays it, and the tensors that every replay writes."""
    aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(3):  # cuDNN chooses its kernels, which cannot be recorded
            step()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph.replay, results


PEAK_SIDE = 8192
PEAK = f'a product of int8 matrices of {PEAK_SIDE} x {PEAK_SIDE} by torch._int_mm'


def int_mm_run(device: str | torch.device = 'cuda', side: int = PEAK_SIDE) -> Callable[[], int]:
    """The fastest int8 product that torch has; a call launches it and returns its operations."""

    def codes() -> Tensor:
        return torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device)

    # The library wants the second matrix with its columns in a row.
    first, second = codes(), codes().t()

    def run() -> int:
        torch._int_mm(first, second)
        return 2 * side**3

    return run


def _float_peer(way: FloatWay, whole: bool = True) -> Peer:
    return Peer(
        (),
        save_state,
        way.dense,
        compiles=bool(way.compiled),
        regions=way.regions,
        whole=way.whole if whole else None,
    )


def _int8_peer(name: str) -> Peer:
    def obstacle() -> str:
        if name not in BACKENDS:
            return f'there is no backend {name!r}'
        return BACKENDS[name].unavailable('cuda')

    way = Int8Way(name)
    return Peer((), save_ours, way.dense, regions=way.regions, whole=way.whole, obstacle=obstacle)


_HALF = torch.float16
CUDA_PEERS: dict[str, Peer] = {
    'torch float32': _float_peer(FloatWay()),
    'torch float32 graph': _float_peer(FloatWay(record=record)),
    'torch float16': _float_peer(FloatWay(_HALF)),
    'torch float16 graph': _float_peer(FloatWay(_HALF, record=record)),
    # This mode records CUDA graphs of its own, which ours cannot hold.
    'torch.compile float16': _float_peer(FloatWay(_HALF, 'max-autotune'), whole=False),
    'torch.compile float16 graph': _float_peer(
        FloatWay(_HALF, 'max-autotune-no-cudagraphs', record), whole=False
    ),
    'mmclipq int_mm': _int8_peer('int_mm'),
    'mmclipq cuda': _int8_peer('cuda'),
}
"""Rows by name; ratios are to the first. ``graph`` is a recorded CUDA graph, float16 has channels
last and batch norms folded, and torch.compile is at its mode ``max-autotune``."""
