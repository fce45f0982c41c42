"""Turns nodes of a graph at given shapes into a program of compiled operators, on any device."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ... import fixed_point as fp
from ...graph import ir
from ...ops import steps
from ...ops.activations import activate
from ...ops.arithmetic import pool_counts, result
from ...ops.layer import ACTIVATIONS, parameter
from ...ops.program import Program, Slot
from .shapes import Shapes, kind_of

COMPILED = (
    ir.Quantize, ir.Dequantize, ir.Requantize, ir.Conv, ir.Linear, ir.Add, ir.Concat, ir.MaxPool,
    ir.Upsample, ir.Slice, ir.Flatten, ir.RoIAlign, ir.Activate, ir.Mul, ir.AvgPool, ir.Affine,
    ir.GroupNorm, ir.LayerNorm,
)  # fmt: skip
"""Nodes that a program can execute."""


def step_of(kind: ir.TensorType) -> float:
    """Value of one code."""
    return math.ldexp(1.0, kind.step_exponent)


class Planner(Shapes, ABC):
    """Plans a part of a graph. Devices differ in their products and in how tensors lie.

    Args:
        nodes: The part in execution order.
        outputs: Names of its results that are read outside.
        types: Type of every tensor of the graph.
        constants: Those of the graph.
        products: The layers by name.
        kept_flat: Flattened tensors whose readers expect channels last.
        inputs: Shape of each tensor read from outside, in the order of the buffers.
        planes: Those of them that are float32 images ``(N, C, H, W)`` with channels first.
    """

    #: Results of these are written into the channels of a concatenation by themselves.
    to_any_channels: tuple[type[ir.Node], ...] = (
        ir.Quantize, ir.Requantize, ir.Add, ir.MaxPool, ir.Upsample, ir.Slice, ir.Activate,
        ir.Mul, ir.AvgPool, ir.Affine, ir.GroupNorm, ir.LayerNorm,
    )  # fmt: skip

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        outputs: Sequence[str],
        types: Mapping[str, ir.TensorType],
        constants: Mapping[str, torch.Tensor],
        products: Mapping[str, Any],
        kept_flat: frozenset[str],
        inputs: Mapping[str, Sequence[int]],
        planes: frozenset[str],
    ) -> None:
        self._nodes, self._types, self._products = nodes, types, products
        self._constants = constants
        self._kept_flat, self._planes = kept_flat, planes
        super().__init__(nodes, constants, inputs)
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
            getattr(self, f'_plan_{kind_of(node)}')(node)
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

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` where steps read them."""
        return values

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

    def _plan_quantize(self, node: ir.Quantize) -> None:
        dst, shape = self._result(node), self.shapes[node.x]
        step = steps.Quantize(
            rows=dst.rows,
            pixels=math.prod(shape[2:]),
            planes=node.x in self._planes,
            dst_signed=node.type.signed,
            dst_offset=node.type.offset,
            scale=1 / step_of(node.type),
        )
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst})

    def _plan_dequantize(self, node: ir.Dequantize) -> None:
        self._dequantize(node.x, self._result(node))

    def _dequantize(self, name: str, dst: Slot) -> None:
        kind = self._types[name]
        step = steps.Dequantize(
            count=dst.shape.numel(), src_signed=kind.signed, src_offset=kind.offset,
            step=step_of(kind),
        )  # fmt: skip
        self.program.add(step, {'src': self.slots[name], 'dst': dst})

    def _plan_requantize(self, node: ir.Requantize) -> None:
        self._sum(node, {'a': node.x})

    def _plan_add(self, node: ir.Add) -> None:
        if self.shapes[node.x] != self.shapes[node.other]:
            self._pairwise(node, product=False)
            return
        self._sum(node, {'a': node.x, 'b': node.other}, node.activation, node.slope)

    def _sum(
        self, node: ir.Node, terms: dict[str, str], activation: str = 'identity', slope: float = 0
    ) -> None:
        dst = self._result(node)
        step = steps.Sum(
            b=steps.Place(-1, 0),
            rows=dst.rows,
            dst_signed=node.type.signed,
            dst_offset=node.type.offset,
            activation=ACTIVATIONS[activation],
            scale=1 / step_of(node.type),
            alpha=parameter(activation, slope),
        )
        self._add_terms(step, terms, dst)

    def _add_terms(self, step: ctypes.Structure, terms: dict[str, str], dst: Slot) -> None:
        """Append ``step`` with what its fields say of the tensors that it combines."""
        for field, name in terms.items():
            setattr(step, f'{field}_signed', self._types[name].signed)
            setattr(step, f'{field}_offset', self._types[name].offset)
            setattr(step, f'{field}_step', step_of(self._types[name]))
        slots = {field: self.slots[name] for field, name in terms.items()}
        self.program.add(step, {**slots, 'dst': dst})

    def _plan_mul(self, node: ir.Mul) -> None:
        self._pairwise(node, product=True)

    def _pairwise(self, node: ir.Add | ir.Mul, product: bool) -> None:
        dst = self._result(node)
        whole = _as_image(dst.shape)
        step = steps.Pairwise(
            images=whole[0], channels=whole[1], rows=whole[2], columns=whole[3], stride=dst.stride,
            a_strides=_broadcast_strides(_as_image(self.shapes[node.x]), whole),
            b_strides=_broadcast_strides(_as_image(self.shapes[node.other]), whole),
            product=product, dst_signed=node.type.signed, dst_offset=node.type.offset,
            activation=ACTIVATIONS[node.activation], scale=1 / step_of(node.type),
            alpha=parameter(node.activation, node.slope),
        )  # fmt: skip
        self._add_terms(step, {'a': node.x, 'b': node.other}, dst)

    def _plan_activate(self, node: ir.Activate) -> None:
        dst, kind = self._result(node), self._types[node.x]
        codes = torch.arange(256).to(torch.uint8)  # as bytes
        values = codes.view(fp.code_dtype(kind.signed)).float().sub_(kind.offset)
        table = activate(values.mul_(step_of(kind)), node.activation, node.slope)
        table = self._on_device(result(table, node.type).contiguous())
        step = steps.Lookup(rows=dst.rows, table=table.data_ptr(), size=table.itemsize)
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst}, table)

    def _plan_avgpool(self, node: ir.AvgPool) -> None:
        (images, channels, height, width), dst = self.shapes[node.x], self._result(node)
        kind = self._types[node.x]
        heights, widths = pool_counts(node, height, width)
        inverse = self._on_device((1.0 / (heights[:, None] * widths)).float().contiguous())
        whole = node.kernel is None
        step = steps.AvgPool(
            images=images, height=height, width=width, channels=channels, rows=dst.shape[2],
            columns=dst.shape[3], stride=dst.stride, kernel=node.kernel or (height, width),
            step=(1, 1) if whole else node.stride, padding=(0, 0) if whole else node.padding,
            inverse=inverse.data_ptr(), src_signed=kind.signed, dst_signed=node.type.signed,
            src_offset=kind.offset, dst_offset=node.type.offset,
            scale=step_of(kind) / step_of(node.type),
        )  # fmt: skip
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst}, inverse)

    def _plan_affine(self, node: ir.Affine) -> None:
        self._affine(node, node.multiplier, steps.GIVEN)

    def _plan_groupnorm(self, node: ir.GroupNorm) -> None:
        self._affine(node, node.weight, steps.OF_GROUPS, groups=node.groups, eps=node.eps)

    def _plan_layernorm(self, node: ir.LayerNorm) -> None:
        self._affine(node, node.weight, steps.OF_PIXELS, eps=node.eps)

    def _affine(
        self, node: ir.Affine | ir.Normalize, multiplier: str, statistics: int, **fields: Any
    ) -> None:
        dst, kind, shape = self._result(node), self._types[node.x], self.shapes[node.x]
        # Images matter to the statistics of groups alone.
        images = shape[0] if statistics == steps.OF_GROUPS else 1
        constants = self._constants[multiplier], self._constants[node.bias]
        step = steps.Affine(
            images=images, pixels=dst.rows.rows // images, channels=dst.channels,
            stride=dst.stride, multiplier=constants[0].data_ptr(), bias=constants[1].data_ptr(),
            step=step_of(kind), statistics=statistics, activation=ACTIVATIONS[node.activation],
            src_signed=kind.signed, src_offset=kind.offset, dst_float=not node.type.is_codes,
            alpha=parameter(node.activation, node.slope), **fields,
        )  # fmt: skip
        if node.type.is_codes:
            step.dst_signed, step.dst_offset = node.type.signed, node.type.offset
            step.scale = 1 / step_of(node.type)
        self.program.add(step, {'src': self.slots[node.x], 'dst': dst}, constants)

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

    def _plan_upsample(self, node: ir.Upsample) -> None:
        self._pick(node)

    def _plan_slice(self, node: ir.Slice) -> None:
        self._pick(node)

    def _pick(self, node: ir.Upsample | ir.Slice) -> None:
        (images, channels, height, width), dst = self.shapes[node.x], self._result(node)
        rows, columns = map(self._on_device, self._sources(node))
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
            src_signed=kind.signed, dst_signed=node.type.signed, src_offset=kind.offset,
            dst_offset=node.type.offset, finest_scale=node.finest_scale,
            scale=math.ldexp(1.0, kind.step_exponent - node.type.step_exponent),
        )  # fmt: skip
        slots += [(step.rois, self.slots[node.rois]), (step.dst, dst)]
        self.program.add(step, slots, levels)


def _as_image(shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` with four axes, channels second."""
    return tuple(shape) if len(shape) == 4 else (1, shape[-1], 1, math.prod(shape[:-1]))


def _broadcast_strides(shape: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
    """Items from one image, row, column and channel of ``whole`` to the next in ``shape``."""
    _, channels, height, width = shape
    strides = {0: height * width * channels, 2: width * channels, 3: channels, 1: 1}
    return tuple(s if shape[axis] == whole[axis] else 0 for axis, s in strides.items())
