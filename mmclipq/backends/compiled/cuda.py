"""Codes by compiled operators on a GPU, products on its tensor cores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...graph import ir
from ...ops.cuda import library as cuda_library
from ...ops.cuda.products import CudaProduct
from ...ops.cuda.tiles import Choice, fastest
from ...ops.program import Slot, memory_format
from ...ops.steps import CudaProductStep
from ..base import register_backend
from .backend import CompiledBackend, Part, Planned, Watch
from .cuda_plan import CudaPlanner

MAX_SHAPES = 16
"""Input shapes that each part of a graph keeps, with their memory; the one used longest ago goes
first."""
_MEASURED = 6  # tiles that are tried of each product, the best by estimate
_ALIGNMENT = 64


@dataclass
class CudaPlanned(Planned):
    """A part at one set of shapes, in memory of its own, so that a CUDA graph can be replayed.

    Attributes:
        externals: Buffers of a run: inputs, results, and what split products need.
        results: Bytes that hold all results.
        sizes: Bytes of each result among them.
        memory: Working memory.
        event: Recorded behind the last run, for runs on other streams.
        graph: The recorded launches; None before the first run.
    """

    externals: list[Tensor]
    results: Tensor
    sizes: list[int]
    memory: Tensor
    event: Any = None
    graph: Any = None


_chosen: dict[tuple[Any, ...], Choice] = {}  # by device and kind of product, once measured


@register_backend
class CudaBackend(CompiledBackend[CudaPlanned]):
    """Codes of the reference on a GPU.

    Each shape of the input is planned once, in memory of its own. Its launches are recorded in a
    CUDA graph and replayed on the current stream, without a synchronization. Results are new
    tensors each time.

    Raises:
        ClipQError: if the operators are not built, or the device is no GPU.
    """

    name = 'cuda'
    layer = CudaProduct
    fallback = 'int_mm'
    library = staticmethod(cuda_library.library)

    def __init__(self, graph: ir.Int8Graph, *args: Any, **kwargs: Any) -> None:
        self._planned: OrderedDict[Any, CudaPlanned] = OrderedDict()
        super().__init__(graph, *args, **kwargs)
        if self.device.type == 'cuda' and self.device.index is None:
            self.device = torch.device('cuda', torch.cuda.current_device())
        self._library = self.library()
        self._gpu = self._library.properties(self.device.index or 0)

    @staticmethod
    def unavailable(device: str) -> str:
        if torch.device(device).type != 'cuda':
            return f'it runs on a GPU, not on {device}; use --backend cpu, or a device such as cuda'
        return cuda_library.why_unavailable() or (
            '' if torch.cuda.is_available() else 'torch finds no GPU; use --device cpu'
        )

    def _planned_for(
        self, part: Part, shapes: tuple[torch.Size, ...], planes: frozenset[str], watched: bool
    ) -> CudaPlanned:
        key = part.key, shapes, planes, watched
        with self._lock, self._current_device():
            found = self._planned.get(key)
            if found is None:
                found = self._plan(part, shapes, planes, watched)
                kept = [k for k in self._planned if k[0] == part.key]
                if len(kept) >= MAX_SHAPES:
                    evicted = self._planned.pop(kept[0])
                    if evicted.event is not None:  # another stream may still be in its memory
                        evicted.event.synchronize()
                self._planned[key] = found
            self._planned.move_to_end(key)
        return found

    def _plan(
        self, part: Part, shapes: tuple[torch.Size, ...], planes: frozenset[str], watched: bool
    ) -> CudaPlanned:
        planner = CudaPlanner(
            *self._to_plan(part, shapes, planes),
            library=self._library,
            gpu=self._gpu,
            device=self.device,
            watched=watched,
        )
        spans = planner.plan()
        externals = []
        for name in part.inputs:
            slot = planner.slots[name]
            layout = memory_format(len(slot.shape))
            if name in planes:
                layout = torch.contiguous_format
            externals.append(self._empty(slot.shape, slot.dtype, memory_format=layout))
        lengths = [planner.slots[name].nbytes for name in part.outputs]
        sizes = [-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths]
        results = self._empty(sum(sizes), torch.uint8)
        externals += results.split(sizes)
        externals += [
            torch.zeros(max(1, count), dtype=torch.int32, device=self.device)
            for count in (planner.sums, planner.counters)
        ]
        planned = CudaPlanned(
            planner.program,
            planner.slots,
            spans,
            externals,
            results,
            sizes,
            self._empty(planner.program.size, torch.uint8),
            torch.cuda.Event() if self.device.type == 'cuda' else None,
        )
        for step, index, candidates in planner.products:
            self._choose(planned, step, index, candidates)
        return planned

    def _empty(self, shape: Any, dtype: torch.dtype, **options: Any) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device, **options)

    def _choose(
        self, planned: CudaPlanned, step: CudaProductStep, index: int, candidates: list[Choice]
    ) -> None:
        """Give ``step`` the fastest of the best tiles, measured once for each kind of product."""
        if self.device.type != 'cuda':
            return
        kind = bytes(step)  # without places and pointers
        kind = kind[: type(step).src.offset] + kind[type(step).outputs.offset :]
        key = self.device, kind

        def measure(choice: Choice) -> float:
            step.tile, step.splits = choice.tile.number, choice.splits
            return self._seconds(planned, index)

        if key not in _chosen:
            _chosen[key] = fastest(candidates[:_MEASURED], measure)
        step.tile, step.splits = _chosen[key].tile.number, _chosen[key].splits

    def _seconds(self, planned: CudaPlanned, index: int, runs: int = 5) -> float:
        """Time of one step on the GPU, after one run that does not count."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        memory, externals = planned.memory, planned.externals
        planned.program.run(memory, externals, index, index + 1)
        start.record()
        for _ in range(runs):
            planned.program.run(memory, externals, index, index + 1)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / runs

    def _execute(
        self, part: Part, planned: CudaPlanned, given: Sequence[Tensor], watch: Watch | None
    ) -> Sequence[Tensor]:
        # Runs share the plan's memory, so they go one behind the other, also on several streams.
        with self._lock, self._current_device():
            if planned.event is not None:
                planned.event.wait()
            for static, value in zip(planned.externals, given, strict=False):
                static.copy_(value, non_blocking=True)
            if watch is not None:
                self._watch(part, planned, planned.memory, planned.externals, watch)
            else:
                self._launch(planned)
            results = planned.results.clone()
            if planned.event is not None:
                planned.event.record()
        parts = zip(part.outputs, results.split(planned.sizes), strict=True)
        return [_view(data, planned.slots[name]) for name, data in parts]

    def _launch(self, planned: CudaPlanned) -> None:
        """All steps; the first time one by one, which loads the kernels, then as a graph."""
        if planned.graph is not None:
            planned.graph.replay()
            return
        planned.program.run(planned.memory, planned.externals)
        if self.device.type == 'cuda':
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with their own work meanwhile.
            with torch.cuda.graph(graph, capture_error_mode='thread_local'):
                planned.program.run(planned.memory, planned.externals)
            planned.graph = graph

    def _outside(self, slot: Slot, buffer: Tensor) -> Tensor:
        return _view(buffer, slot)

    def _current_device(self) -> Any:
        return torch.cuda.device(self.device) if self.device.type == 'cuda' else nullcontext()


def _view(data: Tensor, slot: Slot) -> Tensor:
    """The tensor of ``slot`` in its bytes, without gaps."""
    items = data[: slot.nbytes].view(slot.dtype)
    if len(slot.shape) != 4:
        return items.view(slot.shape)
    n, c, h, w = slot.shape
    return items.view(n, h, w, c).permute(0, 3, 1, 2)
