"""Plans parts of a graph for the compiled CPU operators."""

from __future__ import annotations

from typing import Any

import torch

from ...graph import ir
from ...ops import steps
from ...ops.cpu.program import CpuProgram
from ...ops.program import Program, Slot
from .planner import Planner


class CpuPlanner(Planner):
    """Products through oneDNN, which adds a residual that already lies where the result will.

    Args:
        freed: Whether all of the plan's memory must be freed with it, see :meth:`Product.compile`.
        *args, **kwargs: Those of :class:`Planner`.
    """

    def __init__(self, *args: Any, freed: bool = False, **kwargs: Any) -> None:
        self._freed = freed
        super().__init__(*args, **kwargs)

    def _new_program(self, externals: int) -> Program:
        return CpuProgram(externals)

    def _plan_product(self, node: ir.Product) -> None:
        compiled = self._products[node.name].compile(self.shapes[node.x], self._freed)
        if node.residual is not None:
            self._hold_residual(node)
        slots = {'src': self.slots[node.x], 'dst': self._result(node)}
        step = steps.ProductStep(compiled=compiled.handle, scratchpad=steps.Place(-1, 0))
        if compiled.scratchpad:
            slots['scratchpad'] = Slot((compiled.scratchpad,), torch.uint8)
        self.program.add(step, slots, compiled)

    def _hold_residual(self, node: ir.Product) -> None:
        """Let the result's memory hold what the layer adds to."""
        residual = self.slots[node.residual]
        if not node.type.is_codes:
            self._dequantize(node.residual, self._result(node))
            return
        # Everything that lies there must have been read, this node's other input included.
        names = [name for name, slot in self.slots.items() if slot.owner is residual.owner]
        now = self._nodes.index(node)
        free = (
            residual.external is None
            and residual.nbytes == residual.owner.nbytes
            and node.x not in names
            and not self._outputs.intersection([*names, node.name])
            and all(self._last_reads.get(name, -1) <= now for name in names)
        )
        if free:
            self.slots[node.name] = Slot(residual.shape, self.dtype(node.name), part_of=residual)
        else:
            self._copy(residual, self._result(node))
