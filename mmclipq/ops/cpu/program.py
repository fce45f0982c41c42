"""Programs that run on the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..program import ALIGNMENT, ERROR_SIZE, Program
from .library import library

# Working memory of programs that do not run now, for the next one that does: never more of them
# than programs have run at once, each as large as the largest program has asked for.
_idle: list[Tensor] = []


class CpuProgram(Program):
    """Runs on the CPU. Several threads may run one program at once."""

    @contextmanager
    def memory(self):
        """Working memory for a run, as bytes."""
        try:
            taken = _idle.pop()
        except IndexError:
            taken = torch.empty(0, dtype=torch.uint8)
        if len(taken) < self.size + ALIGNMENT:
            taken = torch.empty(self.size + ALIGNMENT, dtype=torch.uint8)
        try:
            yield taken[-taken.data_ptr() % ALIGNMENT :]
        finally:
            _idle.append(taken)

    def _call(self, start: Any, count: int, buffers: Any, error: Any) -> int:
        return library().clipq_run(start, count, buffers, error, ERROR_SIZE)
