"""What the compiled backends share: a graph in parts, each a program planned once per shape.

Codes lie with channels last in memory; float islands run in PyTorch between the programs.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...graph import ir
from ...graph.types import dtype_of
from ...ops.layer import Layer
from ...ops.program import Program, Slot, memory_format
from ..reference import ReferenceBackend
from ..roi_align import check_regions
from .planner import COMPILED
from .shapes import Unplannable

Observe = Callable[[ir.Node, Any], None]
Watch = Callable[[ir.Node, Tensor], None]


@dataclass(frozen=True)
class Part:
    """Nodes that run without a return to Python in between, or a single node that needs Python.

    Attributes:
        nodes: In execution order.
        inputs: Names read from outside.
        outputs: Names of results that are read outside.
        compiled: Whether a program runs them.
        ended: Tensors that nothing reads after this part.
        regions: For each tensor with one row per region the name of the regions.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compiled: bool
    ended: tuple[str, ...]
    regions: dict[str, str]

    @property
    def key(self) -> tuple[tuple[str, ...], ...]:
        """What tells it from other parts of its graph."""
        return self.inputs, self.outputs


@dataclass
class Planned:
    """A part at one set of shapes.

    Attributes:
        program: Its steps.
        slots: Where each tensor lies.
        spans: First and last step of each node.
    """

    program: Program
    slots: dict[str, Slot]
    spans: dict[str, tuple[int, int]]


P = TypeVar('P', bound=Planned)


def group(
    nodes: Sequence[ir.Node], in_python: set[str], given: Sequence[str] = ()
) -> Iterator[tuple[bool, list[ir.Node]]]:
    """The nodes in an order that returns to Python as rarely as can be.

    Args:
        nodes: In execution order.
        in_python: Names of those that no program runs.
        given: Names of those whose results are there already, besides inputs.

    Yields:
        Whether the nodes run in a program, and the nodes: all that are ready, or one for Python.
    """
    done = {node.name for node in nodes if isinstance(node, ir.Input)} | set(given)
    rest = [node for node in nodes if node.name not in done]
    while rest:
        for compiled in (True, False):
            ready = []
            for node in rest:
                fits = isinstance(node, COMPILED) and node.name not in in_python
                if fits == compiled and done.issuperset(node.inputs):
                    ready.append(node)
                    done.add(node.name)
            rest = [node for node in rest if node.name not in done]
            if compiled and ready:
                yield True, ready
            elif not compiled:
                yield from ((False, [node]) for node in ready)


def rounded_up(count: int) -> int:
    """``count`` with three significant bits, at least 16: the numbers of regions that are planned.

    Every image has another number of regions, and none shall cost a new plan.
    """
    unit = max(16, 1 << max(0, count.bit_length() - 4))
    return max(1, -(-count // unit)) * unit


class CompiledBackend(ReferenceBackend, Generic[P]):
    """Codes are int8 and uint8 tensors ``(N, C, H, W)`` that lie with channels last in memory.

    Several Python threads may run one backend at once. What no step does at some shape, and float
    islands, run in Python as the reference does.

    Attributes:
        layer: Packs the weights of a convolution or linear layer as the planner wants them.
    """

    layer: Callable[..., Layer]

    def __init__(self, graph: ir.Int8Graph, *args: Any, **kwargs: Any) -> None:
        super().__init__(graph, *args, **kwargs)
        self._in_python = {node.name for node in graph.nodes if not self.has_step(node)}
        self._kept_flat = dict(self._find_kept_flat())
        self._products = {
            node.name: self._product(node)
            for node in graph.products()
            if node.name not in self._in_python
        }
        self._lock = threading.RLock()
        self._plan_parts()

    def _plan_parts(self) -> None:
        """Parts from the inputs on, and from the codes of the entry on."""
        self._parts = self._find_parts()
        entry = [] if self.entry is None else [self.entry.name]
        self._parts_behind_entry = self._find_parts(entry)

    def has_step(self, node: ir.Node) -> bool:
        """Whether a program of this device can run ``node``; else it runs in Python."""
        moves_values = isinstance(node, ir.Slice) and not node.type.is_codes
        return isinstance(node, COMPILED) and not moves_values

    @abstractmethod
    def _planned_for(
        self, part: Part, shapes: tuple[torch.Size, ...], planes: frozenset[str], watched: bool
    ) -> P:
        """The part planned for inputs of ``shapes``.

        Args:
            part: The part.
            shapes: Of its inputs.
            planes: Those of them that are images with channels first.
            watched: Whether every node must be made, because its result will be looked at.

        Raises:
            Unplannable: if a node has no step at these shapes.
        """

    def _to_plan(
        self, part: Part, shapes: tuple[torch.Size, ...], planes: frozenset[str]
    ) -> tuple[Any, ...]:
        """What every planner wants to know of the part."""
        inputs = dict(zip(part.inputs, shapes, strict=True))
        whole = self.types, self.constants, self._products, frozenset(self._kept_flat)
        return part.nodes, part.outputs, *whole, inputs, planes

    @abstractmethod
    def _execute(
        self, part: Part, planned: P, given: Sequence[Tensor], watch: Watch | None
    ) -> Sequence[Tensor]:
        """Results in the order of the part's outputs; ``watch`` is handed to :meth:`_watch`."""

    def _find_kept_flat(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Flattened regions that only linear layers read, whose weights then follow the layout,
        with the rows and columns of the regions."""
        outputs = {ref.name for ref in ir.iter_refs(self.graph.outputs)}
        for node in self.graph.nodes:
            if not isinstance(node, ir.Flatten) or node.name in outputs:
                continue
            readers = [n for n in self.graph.nodes if node.name in n.inputs]
            regions = self._nodes[node.x]
            if isinstance(regions, ir.RoIAlign) and all(
                isinstance(n, ir.Linear) and n.residual is None and n.name not in self._in_python
                for n in readers
            ):
                yield node.name, regions.output_size

    def _product(self, node: ir.Product) -> Layer:
        weight = self.constants[node.weight]
        if node.x in self._kept_flat:
            size = self._kept_flat[node.x]
            weight = weight.unflatten(1, (-1, *size)).permute(0, 2, 3, 1).flatten(1)
        residual = None if node.residual is None else self.types[node.residual]
        multiplier, bias = self.constants[node.multiplier], self.constants[node.bias]
        return self.layer(node, weight, multiplier, bias, self.types[node.x], residual)

    def _find_parts(self, given_nodes: Sequence[str] = ()) -> list[Part]:
        kept = {ref.name for ref in ir.iter_refs(self.graph.outputs)}
        groups = list(group(self.graph.nodes, self._in_python, given_nodes))
        last_read: dict[str, int] = {}
        for index, (_, nodes) in enumerate(groups):
            for node in nodes:
                last_read.update(dict.fromkeys(node.inputs, index))
        parts = []
        for index, (compiled, nodes) in enumerate(groups):
            names = [node.name for node in nodes]
            read = dict.fromkeys(name for node in nodes for name in node.inputs)
            regions: dict[str, str] = {}
            for node in nodes:
                if isinstance(node, ir.RoIAlign):
                    regions[node.name] = node.rois
                    continue
                # What an upsampling takes the size of has no say in the number of rows.
                rows = node.inputs[:1] if isinstance(node, ir.Upsample) else node.inputs
                if found := next((regions[n] for n in rows if n in regions), None):
                    regions[node.name] = found
            parts.append(
                Part(
                    tuple(nodes),
                    tuple(name for name in read if name not in names),
                    tuple(n for n in names if n in kept or last_read.get(n, index) > index),
                    compiled,
                    tuple(n for n, i in last_read.items() if i == index and n not in kept),
                    regions,
                )
            )
        return parts

    @torch.no_grad()
    def run(self, *inputs: Tensor, observe: Observe | None = None) -> Any:
        values: dict[str, Any] = {}
        given = iter(inputs)
        parts = self._parts
        for node in self.graph.nodes:
            if isinstance(node, ir.Input):
                x = next(given)
                first: ir.Node = self._entry_of(x) or node
                if first is not node:
                    parts = self._parts_behind_entry
                    values[first.name] = x.to(self.device)
                else:
                    values[first.name] = self._read_input(node, x)
                if observe is not None:
                    observe(first, values[first.name])
        try:
            for part in parts:
                if part.compiled and all(values[name].numel() for name in part.inputs[:1]):
                    self._run_program(part, values, observe)
                else:
                    self._run_nodes(part, values, observe)
                for name in part.ended:
                    values.pop(name, None)
        except Unplannable as error:  # from now on in Python
            with self._lock:
                self._in_python.add(error.node.name)
                self._plan_parts()
            return self.run(*inputs, observe=observe)
        return ir.map_refs(self.graph.outputs, lambda ref: self._output(ref.name, values))

    def _run_nodes(self, part: Part, values: dict[str, Any], observe: Observe | None) -> None:
        for node in part.nodes:
            result = self._computed(node, self._method(node), values)
            values[node.name] = result
            if observe is not None:
                observe(node, result)

    def _run_program(self, part: Part, values: dict[str, Any], observe: Observe | None) -> None:
        given, planes = [], set()
        for name in part.inputs:
            value = values[name]
            wanted = dtype_of(self.types[name])
            if not isinstance(value, Tensor) or value.dtype != wanted:
                found = getattr(value, 'dtype', type(value).__name__)
                raise ir.GraphError(f'{name}: found {found}, wanted {wanted}')
            if name in part.regions.values():
                rows = value.new_zeros(rounded_up(len(value)), value.shape[1])
                rows[: len(value)] = value
                value = rows
            layout = memory_format(value.dim())
            if value.is_contiguous(memory_format=layout):
                pass
            elif value.is_floating_point() and value.is_contiguous():
                planes.add(name)
            else:
                value = value.contiguous(memory_format=layout)
            given.append(value)
        shapes = tuple(value.shape for value in given)
        planned = self._planned_for(part, shapes, frozenset(planes), observe is not None)
        for node in part.nodes:
            if isinstance(node, ir.RoIAlign) and node.rois in values:
                levels = [planned.slots[name].shape for name in node.levels]
                check_regions(node, values[node.rois], levels)

        def rows_of(name: str, tensor: Tensor) -> Tensor:
            return tensor[: len(values[part.regions[name]])] if name in part.regions else tensor

        def watch(node: ir.Node, seen: Tensor) -> None:
            if observe is not None:
                observe(node, rows_of(node.name, self._in_order(node, seen)))

        results = self._execute(part, planned, given, None if observe is None else watch)
        for name, result in zip(part.outputs, results, strict=True):
            values[name] = rows_of(name, result)

    def _watch(
        self, part: Part, planned: Planned, memory: Tensor, externals: Sequence[Tensor],
        watch: Watch,
    ) -> None:  # fmt: skip
        """Run the program node by node and show each result."""
        for node in part.nodes:
            planned.program.run(memory, externals, *planned.spans[node.name])
            slot = planned.slots[node.name]
            if slot.external is None:
                watch(node, slot.read(memory))
            else:
                watch(node, self._part_of(slot, self._outside(slot, externals[slot.external])))

    @staticmethod
    def _part_of(slot: Slot, buffer: Tensor) -> Tensor:
        """A copy of what lies in ``slot`` inside of the result that ``buffer`` holds."""
        if slot.owner is slot or buffer.dim() != 4:
            return buffer.clone()
        if len(slot.shape) == 4:  # channels of a concatenation
            first = slot.offset // slot.dtype.itemsize
            return buffer.narrow(1, first, slot.channels).clone()
        return buffer.permute(0, 2, 3, 1).flatten(1)  # the same bytes as rows

    def _outside(self, slot: Slot, buffer: Tensor) -> Tensor:
        """The result of ``slot`` in its buffer."""
        return buffer

    def _in_order(self, node: ir.Node, seen: Tensor) -> Tensor:
        """``seen`` with channels first, where the program keeps them last in a flat tensor."""
        if node.name not in self._kept_flat:
            return seen
        size = self._kept_flat[node.name]
        return seen.unflatten(1, (*size, -1)).permute(0, 3, 1, 2).flatten(1)
