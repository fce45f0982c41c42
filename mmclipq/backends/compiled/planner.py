"""Turns nodes of a graph at given shapes into a program of compiled operators, on any device."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ... import fixed_point as fp
from ...graph import ir
from ...ops import steps
from ...ops.layer import ACTIVATIONS
from ...ops.program import Program, Slot

COMPILED = (
    ir.Quantize, ir.Dequantize, ir.Requantize, ir.Conv, ir.Linear, ir.Add, ir.Concat, ir.MaxPool,
    ir.Upsample, ir.Flatten, ir.RoIAlign,
)  # fmt: skip
"""Nodes that a program can execute."""


class Unplannable(Exception):
    """A node that no step does at these shapes.

    Attributes:
        node: The node.
    """

    def __init__(self, node: ir.Node) -> None:
        super().__init__(node.name)
        self.node = node


def step_of(kind: ir.TensorType) -> float:
    """Value of one code."""
    return math.ldexp(1.0, kind.step_exponent)


class Planner(ABC):
    """Plans a part of a graph. Devices differ in their products and in how tensors lie.

    Args:
        nodes: The part in execution order.
        outputs: Names of its results that are read outside.
        types: Type of every tensor of the graph.
        products: The layers by name.
        kept_flat: Flattened tensors whose readers expect channels last.
        inputs: Shape of each tensor read from outside, in the order of the buffers.
        planes: Those of them that are float32 images ``(N, C, H, W)`` with channels first.
    """

    #: Results of these are written into the channels of a concatenation by themselves.
    to_any_channels: tuple[type[ir.Node], ...] = (
        ir.Quantize, ir.Requantize, ir.Add, ir.MaxPool, ir.Upsample,
    )  # fmt: skip

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        outputs: Sequence[str],
        types: Mapping[str, ir.TensorType],
        products: Mapping[str, Any],
        kept_flat: frozenset[str],
        inputs: Mapping[str, Sequence[int]],
        planes: frozenset[str],
    ) -> None:
        self._nodes, self._types, self._products = nodes, types, products
        self._kept_flat, self._planes = kept_flat, planes
        self.shapes: dict[str, tuple[int, ...]] = dict(inputs)
        for node in nodes:
            self.shapes[node.name] = tuple(getattr(self, f'_{_kind(node)}_shape')(node))
        self.program = self._new_program(len(inputs) + len(outputs))
        self._external = {name: index for index, name in enumerate((*inputs, *outputs))}
        self.slots: dict[str, Slot] = {
            name: Slot(shape, self.dtype(name), self._external[name])
            for name, shape in inputs.items()
        }
        self._outputs = set(outputs)
        self._last_reads = {name: i for i, node in enumerate(nodes) for name in node.inputs}
        self._by_name = {node.name: node for node in nodes}
        self._readers: dict[str, list[ir.Node]] = {}
        for node in nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._places = self._find_places()

    @abstractmethod
    def _new_program(self, externals: int) -> Program:
        """An empty program whose runs bring so many buffers."""

    def plan(self) -> dict[str, tuple[int, int]]:
        """Fill and finish the program; returns the first and last step of each node."""
        spans = {}
        for node in self._nodes:
            start = len(self.program)
            getattr(self, f'_plan_{_kind(node)}')(node)
            spans[node.name] = start, len(self.program)
        self.program.finish()
        return spans

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor ``name``."""
        kind = self._types[name]
        return fp.code_dtype(kind.signed) if kind.is_codes else torch.float32

    def _find_places(self) -> dict[str, tuple[str, int]]:
        """Concatenation and first channel of each tensor that is made right inside of one."""
        made = {node.name: node for node in self._nodes if isinstance(node, self.to_any_channels)}
        places = {}
        for node in self._nodes:
            if not isinstance(node, ir.Concat) or len(self.shapes[node.name]) != 4:
                continue
            channel = 0
            for name in node.tensors:
                alone = len(self._readers[name]) == 1 and name not in self._outputs
                if name in made and alone and self._fits(made[name], node, channel):
                    places[name] = node.name, channel
                channel += self.shapes[name][1]
        return places

    def _fits(self, node: ir.Node, whole: ir.Concat, channel: int) -> bool:
        """Whether ``node`` can write into the channels of ``whole`` from ``channel`` on."""
        return True

    def _result(self, node: ir.Node) -> Slot:
        """The slot that ``node`` writes."""
        if node.name not in self.slots:
            if node.name in self._places:
                whole, channel = self._places[node.name]
                if whole not in self.slots:
                    self.slots[whole] = self._new_slot(whole)
                slot = Slot(
                    self.shapes[node.name],
                    self.dtype(node.name),
                    part_of=self.slots[whole],
                    channel=channel,
                )
            else:
                slot = self._new_slot(node.name)
            self.slots[node.name] = slot
        return self.slots[node.name]

    def _new_slot(self, name: str) -> Slot:
        return Slot(self.shapes[name], self.dtype(name), self._external.get(name))

    # Shapes.

    def _same_shape(self, node: ir.Node) -> Sequence[int]:
        return self.shapes[node.x]

    _quantize_shape = _dequantize_shape = _requantize_shape = _same_shape

    def _product_shape(self, node: ir.Product) -> Sequence[int]:
        return self._products[node.name].result_shape(self.shapes[node.x])

    _conv_shape = _linear_shape = _product_shape

    def _add_shape(self, node: ir.Add) -> Sequence[int]:
        if self.shapes[node.x] != self.shapes[node.other]:
            raise Unplannable(node)
        return self.shapes[node.x]

    def _concat_shape(self, node: ir.Concat) -> Sequence[int]:
        shapes = [self.shapes[name] for name in node.tensors]
        if len(shapes[0]) not in (2, 4):
            raise Unplannable(node)
        return (shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:])

    def _maxpool_shape(self, node: ir.MaxPool) -> Sequence[int]:
        images, channels, *sides = self.shapes[node.x]
        # PyTorch's own rules give the size; a tensor without memory makes that free.
        pooled = F.max_pool2d(
            torch.empty(1, 1, *sides, device='meta'), node.kernel, node.stride, node.padding,
            node.dilation, node.ceil_mode,
        )  # fmt: skip
        return (images, channels, *pooled.shape[2:])

    def _upsample_shape(self, node: ir.Upsample) -> Sequence[int]:
        return (*self.shapes[node.x][:2], *(len(rows) for rows in self._sources(node)))

    def _flatten_shape(self, node: ir.Flatten) -> Sequence[int]:
        shape = self.shapes[node.x]
        return (shape[0], math.prod(shape[1:]))

    def _roialign_shape(self, node: ir.RoIAlign) -> Sequence[int]:
        channels = self.shapes[node.levels[0]][1]
        return (self.shapes[node.rois][0], channels, *node.output_size)

    # Steps.

    def _plan_quantize(self, node: ir.Quantize) -> None:
        dst, shape = self._result(node), self.shapes[node.x]
        step = steps.Quantize(
            rows=dst.rows,
            pixels=math.prod(shape[2:]),
            planes=node.x in self._planes,
            dst_signed=node.type.signed,
            scale=1 / step_of(node.type),
        )
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst})

    def _plan_dequantize(self, node: ir.Dequantize) -> None:
        self._dequantize(node.x, self._result(node))

    def _dequantize(self, name: str, dst: Slot) -> None:
        kind = self._types[name]
        step = steps.Dequantize(count=dst.shape.numel(), src_signed=kind.signed, step=step_of(kind))
        self.program.add(step, {'src': self.slots[name], 'dst': dst})

    def _plan_requantize(self, node: ir.Requantize) -> None:
        self._sum(node, {'a': node.x})

    def _plan_add(self, node: ir.Add) -> None:
        self._sum(node, {'a': node.x, 'b': node.other}, node.activation, node.slope)

    def _sum(
        self, node: ir.Node, terms: dict[str, str], activation: str = 'identity', slope: float = 0
    ) -> None:
        dst = self._result(node)
        step = steps.Sum(
            b=steps.Place(-1, 0),
            rows=dst.rows,
            dst_signed=node.type.signed,
            activation=ACTIVATIONS[activation],
            scale=1 / step_of(node.type),
            alpha={'relu6': 6.0, 'leaky_relu': slope}.get(activation, 0.0),
        )
        for field, name in terms.items():
            setattr(step, f'{field}_signed', self._types[name].signed)
            setattr(step, f'{field}_step', step_of(self._types[name]))
        slots = {field: self.slots[name] for field, name in terms.items()}
        self.program.add(step, {**slots, 'dst': dst})

    @abstractmethod
    def _plan_product(self, node: ir.Product) -> None:
        """Add the layer."""

    def _plan_conv(self, node: ir.Conv) -> None:
        self._plan_product(node)

    def _plan_linear(self, node: ir.Linear) -> None:
        self._plan_product(node)

    def _copy(self, src: Slot, dst: Slot) -> None:
        self.program.add(steps.Copy(rows=dst.rows), {'src': src, 'dst': dst})

    def _plan_concat(self, node: ir.Concat) -> None:
        whole, channel = self._result(node), 0
        for name in node.tensors:
            if name not in self._places:
                part = Slot(self.shapes[name], self.dtype(name), part_of=whole, channel=channel)
                self._copy(self.slots[name], part)
            channel += self.shapes[name][1]

    def _plan_maxpool(self, node: ir.MaxPool) -> None:
        (images, channels, height, width), dst = self.shapes[node.x], self._result(node)
        step = steps.MaxPool(
            images=images, height=height, width=width, channels=channels, rows=dst.shape[2],
            columns=dst.shape[3], stride=dst.stride, kernel=node.kernel, step=node.stride,
            padding=node.padding, dilation=node.dilation, is_signed=node.type.signed,
        )  # fmt: skip
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst})

    def _sources(self, node: ir.Upsample) -> list[torch.Tensor]:
        """Number of the source of each row and of each column of the result, int64."""
        sources = []
        for axis, size in enumerate(self.shapes[node.x][2:]):
            # PyTorch's own rules, along one axis; float32 holds these numbers exactly.
            line = torch.arange(size, dtype=torch.float32).view(1, 1, -1, 1)
            if node.like is None:
                line = F.interpolate(line, scale_factor=(node.scale[axis], 1.0), mode='nearest')
            else:
                line = F.interpolate(line, (self.shapes[node.like][2 + axis], 1), mode='nearest')
            sources.append(line.flatten().long())
        return sources

    def _indices(self, node: ir.Upsample) -> list[torch.Tensor]:
        """:meth:`_sources` where the device reads them."""
        return self._sources(node)

    def _plan_upsample(self, node: ir.Upsample) -> None:
        (images, channels, height, width), dst = self.shapes[node.x], self._result(node)
        rows, columns = self._indices(node)
        step = steps.Upsample(
            images=images, height=height, width=width, rows=len(rows), columns=len(columns),
            channels=channels, stride=dst.stride, row_of=rows.data_ptr(),
            column_of=columns.data_ptr(),
        )  # fmt: skip
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst}, (rows, columns))

    def _plan_flatten(self, node: ir.Flatten) -> None:
        x, shape = self.slots[node.x], self.shapes[node.x]
        if node.name in self._kept_flat or len(shape) != 4 or math.prod(shape[2:]) == 1:
            if node.name not in self._external:
                slot = Slot(self.shapes[node.name], self.dtype(node.name), part_of=x)
                slot.stride = slot.channels
                self.slots[node.name] = slot
            else:
                self._copy(x, self._result(node))
            return
        step = steps.Flatten(images=shape[0], pixels=math.prod(shape[2:]), channels=shape[1])
        self.program.add(step, {'src': x, 'dst': self._result(node)})

    def _plan_roialign(self, node: ir.RoIAlign) -> None:
        dst, kind = self._result(node), self._types[node.levels[0]]
        levels = (steps.Level * len(node.levels))()
        slots = []
        for level, name, scale in zip(levels, node.levels, node.scales, strict=True):
            level.height, level.width = self.shapes[name][2:]
            level.scale = scale
            slots.append((level.codes, self.slots[name]))
        step = steps.RoIAlign(
            level=ctypes.cast(levels, ctypes.POINTER(steps.Level)), count=dst.shape[0],
            levels=len(levels), channels=dst.channels, rows=node.output_size[0],
            columns=node.output_size[1], sampling_ratio=node.sampling_ratio, aligned=node.aligned,
            src_signed=kind.signed, dst_signed=node.type.signed, finest_scale=node.finest_scale,
            scale=math.ldexp(1.0, kind.step_exponent - node.type.step_exponent),
        )  # fmt: skip
        slots += [(step.rois, self.slots[node.rois]), (step.dst, dst)]
        self.program.add(step, slots, levels)


def _kind(node: ir.Node) -> str:
    return type(node).__name__.lower()
