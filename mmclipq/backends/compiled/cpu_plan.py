"""Plans parts of a graph for the compiled CPU operators."""

from __future__ import annotations

from typing import Any

import torch

from ...graph import ir
from ...ops import steps
from ...ops.cpu.program import CpuProgram
from ...ops.program import Slot
from .planner import Planner


class CpuPlanner(Planner):
    """Products through oneDNN or kernels of our own.

    Args:
        freed: Whether all of the plan's memory must be freed with it, see :meth:`Product.compile`.
        *args, **kwargs: Those of :class:`Planner`.
    """

    program: CpuProgram
    to_any_channels = (*Planner.to_any_channels, ir.Conv)

    def __init__(self, *args: Any, freed: bool = False, **kwargs: Any) -> None:
        self._freed = freed
        super().__init__(*args, **kwargs)

    def _new_program(self, externals: int) -> CpuProgram:
        return CpuProgram(externals)

    def _fits(self, node: ir.Node, whole: ir.Concat, channel: int) -> bool:
        return not isinstance(node, ir.Product) or self._products[node.name].direct

    def _plan_product(self, node: ir.Product) -> None:
        compiled = self._products[node.name].compile(self.shapes[node.x], self._freed)
        step = steps.ProductStep(
            compiled=compiled.handle, scratchpad=steps.Place(-1, 0), residual=steps.Place(-1, 0)
        )
        slots = {'src': self.slots[node.x]}
        if node.residual is not None and compiled.holds_residual:
            self._hold_residual(node, node.residual)
        elif node.residual is not None:
            slots['residual'] = self.slots[node.residual]
        slots['dst'] = self._result(node)
        step.dst_stride = slots['dst'].stride
        if compiled.scratchpad:
            slots['scratchpad'] = Slot((compiled.scratchpad,), torch.uint8)
        self.program.add(step, slots, compiled)

    def _hold_residual(self, node: ir.Product, added: str) -> None:
        """Let the result's memory hold ``added``, what the layer adds to."""
        residual = self.slots[added]
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
