"""Plans parts of a graph for the compiled CUDA operators."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...graph import ir
from ...ops.cuda.library import CudaLibrary, Properties
from ...ops.cuda.products import CudaProduct, stored_channels
from ...ops.cuda.program import CudaProgram
from ...ops.cuda.tiles import Choice, choices
from ...ops.program import Program, Slot
from ...ops.steps import CudaProductStep
from .planner import Planner


class CudaPlanner(Planner):
    """Products on tensor cores.

    These read and write 16 channels at once. So what only products read gets a gap behind its
    channels up to a multiple of 16 (or of 4, for at most 4), whose rubbish meets weights of zero.
    Upsampled maps that products add are not made: the products read the smaller map.

    Args:
        *args: Those of :class:`Planner`.
        library: The operators.
        gpu: What tiles are chosen for.
        device: Where the tensors are.
        watched: Whether every node must be made, because its result will be looked at.

    Attributes:
        products: Step, its number and its possible tiles, of each product that has tiles.
        sums, counters: Integers of memory, zeros at first, that split products need.
    """

    to_any_channels = (*Planner.to_any_channels, ir.Conv)

    def __init__(
        self,
        *args: Any,
        library: CudaLibrary,
        gpu: Properties,
        device: torch.device,
        watched: bool = False,
    ) -> None:
        self._library, self._gpu, self._device = library, gpu, device
        self.products: list[tuple[CudaProductStep, int, list[Choice]]] = []
        self.sums = self.counters = 0
        self._read_in_place: dict[str, ir.Upsample] = {}
        super().__init__(*args)
        if not watched:
            self._read_in_place = {
                node.name: node
                for node in self._nodes
                if isinstance(node, ir.Upsample) and self._is_only_added(node.name)
            }

    def _is_only_added(self, name: str) -> bool:
        return name not in self._outputs and all(
            isinstance(reader, ir.Product) and reader.residual == name and reader.x != name
            for reader in self._readers.get(name, ())
        )

    def _new_program(self, externals: int) -> Program:
        # Behind those of the graph: the sums and the counters of split products.
        self._sums = Slot((0,), torch.int32, externals)
        self._counters = Slot((0,), torch.int32, externals + 1)
        return CudaProgram(externals + 2, self._library, self._device)

    def _fits(self, node: ir.Node, whole: ir.Concat, channel: int) -> bool:
        """A product writes into a concatenation where its stores of 16 channels are aligned."""
        channels = self.shapes[node.name][1], self.shapes[whole.name][1]
        return not isinstance(node, ir.Conv) or all(n % 16 == 0 for n in (channel, *channels))

    def _new_slot(self, name: str) -> Slot:
        slot = super()._new_slot(name)
        makers = (*self.to_any_channels, ir.Linear, ir.Concat)
        makes_gaps = isinstance(self._by_name[name], makers)
        only_products = all(isinstance(n, ir.Product) for n in self._readers.get(name, ()))
        gaps = makes_gaps and only_products and self._types[name].is_codes
        if gaps and slot.external is None:
            slot.stride = stored_channels(slot.channels)
        return slot

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device)

    def _plan_upsample(self, node: ir.Upsample) -> None:
        if node.name not in self._read_in_place:
            super()._plan_upsample(node)

    def _plan_product(self, node: ir.Product) -> None:
        product: CudaProduct = self._products[node.name]
        shape = self.shapes[node.x]
        x, dst = self.slots[node.x], self._result(node)
        if not product.grouped and not _fits_copies(x, product.channels):
            packed = Slot(shape, x.dtype, stride=product.channels)
            self._copy(x, packed)
            x = packed
        step = product.step(shape, self.shapes[node.name])
        slots, kept = {'src': x, 'dst': dst}, [product]
        step.src_stride, step.dst_stride = x.stride, dst.stride
        step.wide_dst = _is_wide(dst)
        if node.residual is not None:
            slots['residual'] = self._add_residual(node.residual, step, kept)
        if not product.grouped:
            pixels = math.prod(self.shapes[node.name]) // product.outputs
            found = choices(
                self._library.tiles, pixels, product.outputs, product.depth,
                product.few_channels, self._gpu,
            )  # fmt: skip
            step.tile, step.splits = found[0].tile.number, found[0].splits
            self.products.append((step, len(self.program), found))
            for choice in found:
                self.sums = max(self.sums, choice.sums(pixels, product.outputs))
                self.counters = max(self.counters, choice.tiles(pixels, product.outputs))
            slots |= {'sums': self._sums, 'counters': self._counters}
        self.program.add(step, slots, kept)

    def _add_residual(self, name: str, step: CudaProductStep, kept: list[Any]) -> Slot:
        """Let ``step`` add the tensor ``name``; returns the slot that it reads."""
        if name in self._read_in_place:
            upsample = self._read_in_place[name]
            name = upsample.x
            rows, columns = map(self._on_device, self._sources(upsample))
            kept += [rows, columns]
            step.row_of, step.column_of = rows.data_ptr(), columns.data_ptr()
            step.residual_height, step.residual_width = self.shapes[name][2:]
        residual = self.slots[name]
        step.residual_stride = residual.stride
        step.wide_residual = _is_wide(residual)
        return residual


def _fits_copies(slot: Slot, channels: int) -> bool:
    """Whether the stored ``channels`` of each pixel can be copied, 16 at once or all 4."""
    unit = 4 if channels == 4 else 16
    return slot.stride >= channels and slot.stride % unit == 0 and slot.offset % unit == 0


def _is_wide(slot: Slot) -> bool:
    """Whether 16 channels of a pixel may be read or written at once, up to the last ones."""
    if slot.dtype.itemsize != 1 or slot.stride % 16 or slot.offset % 16:
        return False
    own = slot.owner is slot and slot.stride >= math.ceil(slot.channels / 16) * 16
    return own or slot.channels % 16 == 0
