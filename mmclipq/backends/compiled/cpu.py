"""Codes by compiled operators on the CPU, products through oneDNN."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...graph import ir
from ...ops.cpu.library import follow_torch_threads, why_unavailable
from ...ops.cpu.products import Product
from ...ops.cpu.program import CpuProgram
from ...ops.program import memory_format
from ..base import register_backend
from .backend import CompiledBackend, Observe, Part, Planned, Watch
from .cpu_plan import CpuPlanner

MAX_SHAPES = 64
"""Input shapes for which each part of a graph gets the fastest implementations and keeps them,
because oneDNN would not free them. Every later shape is slower, with AMX several times."""
MAX_LATER_SHAPES = 32
"""Later shapes that are kept; the one used longest ago goes first."""


@dataclass
class _CpuPlanned(Planned):
    program: CpuProgram
    freed: bool


@register_backend
class CpuBackend(CompiledBackend[_CpuPlanned]):
    """Codes of the reference through oneDNN and operators of our own; threads are torch's.

    Raises:
        ClipQError: if the operators are not built, or the processor lacks AVX2.
    """

    name = 'cpu'
    layer = Product

    def __init__(self, graph: ir.Int8Graph, *args: Any, **kwargs: Any) -> None:
        self._planned: OrderedDict[Any, _CpuPlanned] = OrderedDict()
        super().__init__(graph, *args, **kwargs)

    @staticmethod
    def unavailable(device: str) -> str:
        if torch.device(device).type != 'cpu':
            return f'it runs on the CPU, not on {device}'
        return why_unavailable()

    @torch.no_grad()
    def run(self, *inputs: Tensor, observe: Observe | None = None) -> Any:
        follow_torch_threads()
        return super().run(*inputs, observe=observe)

    def _execute(
        self, part: Part, planned: _CpuPlanned, given: Sequence[Tensor], watch: Watch | None
    ) -> Sequence[Tensor]:
        results = []
        for name in part.outputs:
            slot = planned.slots[name]
            layout = memory_format(len(slot.shape))
            results.append(torch.empty(slot.shape, dtype=slot.dtype, memory_format=layout))
        externals = [*given, *results]
        with planned.program.memory() as memory:
            if watch is None:
                planned.program.run(memory, externals)
            else:
                self._watch(part, planned, memory, externals, watch)
        return results

    def _planned_for(
        self, part: Part, shapes: tuple[torch.Size, ...], planes: frozenset[str], watched: bool
    ) -> _CpuPlanned:
        key = part.key, shapes, planes, torch.get_num_threads()
        with self._lock:
            found = self._planned.get(key)
            if found is None:
                kept = [k for k in self._planned if k[0] == part.key]
                later = [k for k in kept if self._planned[k].freed]
                freed = len(kept) - len(later) >= MAX_SHAPES
                planner = CpuPlanner(*self._to_plan(part, shapes, planes), freed=freed)
                spans = planner.plan()
                found = _CpuPlanned(planner.program, planner.slots, spans, freed)
                if len(later) >= MAX_LATER_SHAPES:
                    del self._planned[later[0]]
                self._planned[key] = found
            self._planned.move_to_end(key)
        return found
