"""``Int8Graph`` as an ONNX graph of QuantizeLinear, DequantizeLinear and float operators.

Every tensor of codes is the output of one QuantizeLinear and is read through one DequantizeLinear,
with the tensor's offset as zero point and its power-of-two step as scale, so that both are exact. A
product's int8 weights carry ``multiplier / input step`` as their scale per channel: batch norm lies
in the scales and in the float bias.

Where QuantizeLinear stands differs between runtimes: :mod:`mmclipq.exporters.targets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from .. import fixed_point as fp
from ..graph import ir
from .activations import activated
from .builder import OnnxBuilder
from .curves import LINEAR, interval
from .islands import translate
from .operators import (
    average_pool,
    group_norm,
    layer_norm,
    padding,
    roi_align,
    scaled_channels,
)
from .targets import DEFAULT_TARGET, target_of
from .weights import folded_weights

_COARSEST = 8
"""Steps of a result for one of the sum before its activation; coarser ones leave out far ends."""


class QdqWriter:
    """Adds integer graphs to a builder.

    Args:
        g: Where to.
        target: Name of the target.
        islands: Holder of the modules that float steps name.
    """

    def __init__(
        self, g: OnnxBuilder, target: str = DEFAULT_TARGET, islands: nn.Module | None = None
    ) -> None:
        self.g, self.islands, self.target = g, islands, target_of(target)
        self._shifted: set[str] = set()  # names of codes with the zero point 128
        self.rounded: set[str] = set()  # names of codes that the graph has before an activation

    def add(self, graph: ir.Int8Graph, inputs: Sequence[str], prefix: str = '') -> dict[str, str]:
        """Add the nodes of ``graph`` and return the ONNX names of its tensors, codes or values.

        Args:
            graph: What to add.
            inputs: ONNX names for the input nodes, in order.
            prefix: Put before the names of tensors.

        Raises:
            ExportError: if a float step has no ONNX form, naming it.
        """
        self.constants, self.prefix = graph.constants, prefix
        self.steps = {n: kind.step_exponent for n, kind in graph.tensors.items() if kind.is_codes}
        self.types = {n: self.target.type_of(kind) for n, kind in graph.tensors.items()}
        self.names: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.ranks: dict[str, int] = {}
        self._values_alone = {name for node in graph.nodes if isinstance(node, ir.RoIAlign)
                              for name in node.inputs}  # fmt: skip
        given = iter(inputs)
        for node in graph.nodes:
            if isinstance(node, ir.Input):
                self._input(node, next(given))
            elif isinstance(node, ir.FloatCall):
                values = {name: self._value(name) for name in node.inputs}
                self._define(node, translate(self.g, node, values, self.islands))
            else:
                getattr(self, f'_{type(node).__name__.lower()}')(node)
                self._note_rank(node)
        return dict(self.names)

    def _note_rank(self, node: ir.Node) -> None:
        if isinstance(node, (ir.Conv, ir.ConvTranspose, ir.AvgPool, ir.RoIAlign)):
            self.ranks[node.name] = 4
        elif isinstance(node, ir.Flatten):
            self.ranks[node.name] = 2
        elif all(name in self.ranks for name in node.inputs):
            self.ranks[node.name] = max(self.ranks[name] for name in node.inputs)

    def _limits(self, name: str) -> tuple[float, float]:
        """Smallest and largest value that the codes of tensor ``name`` stand for."""
        kind, step = self.types[name], math.ldexp(1.0, self.steps[name])
        low, high = fp.code_range(kind.signed)
        return (low - kind.offset) * step, (high - kind.offset) * step

    def _rank(self, name: str) -> int:
        """Number of axes of the graph's tensor ``name``."""
        if name not in self.ranks:
            self.ranks[name] = self.g.rank_of(self.names[name])
        return self.ranks[name]

    def _array(self, key: str) -> np.ndarray:
        return self.constants[key].detach().cpu().numpy()

    def _input(self, node: ir.Input, name: str) -> None:
        self._define(node, name)
        if name in self.g.ranks:
            self.ranks[node.name] = self.g.ranks[name]
        kind = self.types[node.name]
        # Inputs stay signed; ONNX Runtime's convolutions read them as they write their results.
        shifts = self.target.extra_pairs and kind.is_codes and kind.signed
        if shifts and node.name not in self._values_alone and name not in self._shifted:
            value = self._dequantized(name, kind, f'{name}.plain')
            self.names[node.name] = self._quantized(value, kind, f'{name}.shifted')

    def _define(self, node: ir.Node, name: str) -> None:
        self.names[node.name] = name
        if not node.type.is_codes:
            self.values[node.name] = name

    def _scale_and_zero(self, kind: ir.TensorType, shifted: bool) -> tuple[str, str]:
        scale = self.g.floats(math.ldexp(1.0, kind.step_exponent))
        if shifted and kind.signed:
            return scale, self.g.constant(128, np.uint8)
        return scale, self.g.constant(kind.offset, np.int8 if kind.signed else np.uint8)

    def _quantized(self, x: str, kind: ir.TensorType, name: str) -> str:
        result = self.g.op(
            'QuantizeLinear', x, *self._scale_and_zero(kind, self.target.extra_pairs), name=name
        )
        if self.target.extra_pairs and kind.signed:
            self._shifted.add(result)
        return result

    def _dequantized(self, codes: str, kind: ir.TensorType, name: str) -> str:
        scale_and_zero = self._scale_and_zero(kind, codes in self._shifted)
        return self.g.op('DequantizeLinear', codes, *scale_and_zero, name=name)

    def plain(self, name: str) -> str:
        """ONNX name of the tensor ``name`` as plain codes with zero point 0, or as float32."""
        found = self.names[name]
        if found not in self._shifted:
            return found
        scale_and_zero = self._scale_and_zero(self.types[name], False)
        return self.g.op('QuantizeLinear', self._value(name), *scale_and_zero, name=f'{found}.int8')

    def _value(self, name: str) -> str:
        """Float32 values of the graph's tensor ``name``; one DequantizeLinear for all readers."""
        if name not in self.values:
            codes = self.names[name]
            self.values[name] = self._dequantized(codes, self.types[name], f'{codes}.value')
        return self.values[name]

    def _finish(self, node: ir.Node, v: str) -> None:
        """Define the result of ``node`` from its float32 values."""
        name = f'{self.prefix}{node.name}'
        if node.type.is_codes:
            v = self._quantized(v, self.types[node.name], name)
        self._define(node, v)

    def _pair(self, node: ir.Product, v: str) -> str:
        """Rounds ``v`` to codes on the way, for ONNX Runtime: to the signed codes of the node's
        range, or to a grid over the inputs that a smooth activation tells apart."""
        between = f'{self.prefix}{node.name}.between'
        kind = node.type
        if node.activation not in LINEAR:
            step, limits = math.ldexp(1.0, kind.step_exponent), self._limits(node.name)
            added = node.residual
            least, most = (0.0, 0.0) if added is None else self._limits(added)
            if added is not None and node.residual_last:
                limits = limits[0] - most, limits[1] - least
            ends = interval(node.activation, node.slope, *limits, step / 2)
            if ends[1] - ends[0] > _COARSEST * 255 * step:
                ends = interval(node.activation, node.slope, *limits, step / 2, near=True)
            if added is not None and not node.residual_last:
                ends = min(ends[0] - most, 0.0), max(ends[1] - least, 0.0)
            scale = max(ends[1] - ends[0], step) / 255
            zero = self.g.constant(min(round(-ends[0] / scale), 255), np.uint8)
            pair = self.g.floats(scale), zero
            codes = self.g.op('QuantizeLinear', v, *pair, name=between)
            return self.g.op('DequantizeLinear', codes, *pair, name=f'{between}.value')
        if kind.signed or node.activation not in ('relu', 'relu6') or node.residual is not None:
            kind = ir.TensorType(kind.exponent, True)
        return self._dequantized(self._quantized(v, kind, between), kind, f'{between}.value')

    def _quantize(self, node: ir.Quantize) -> None:
        self._finish(node, self._value(node.x))

    def _dequantize(self, node: ir.Dequantize) -> None:
        self._define(node, self._value(node.x))

    def _requantize(self, node: ir.Requantize) -> None:
        self._finish(node, self._value(node.x))

    def _conv(self, node: ir.Conv) -> None:
        self._product(
            node, 'Conv', strides=list(node.stride), dilations=list(node.dilation),
            group=node.groups, **padding(node, self.constants[node.weight].shape[2:]),
        )  # fmt: skip

    def _convtranspose(self, node: ir.ConvTranspose) -> None:
        self._product(
            node, 'ConvTranspose', strides=list(node.stride), dilations=list(node.dilation),
            group=node.groups, pads=[*node.padding, *node.padding],
            output_padding=list(node.output_padding),
        )  # fmt: skip

    def _linear(self, node: ir.Linear) -> None:
        if self._rank(node.x) == 2:
            self._product(node, 'Gemm', transB=1)
        else:
            self._product(node, 'MatMul')

    def _product(self, node: ir.Product, kind: str, **attributes: Any) -> None:
        g, name = self.g, f'{self.prefix}{node.name}'
        folded = folded_weights(
            self.constants[node.weight], self.constants[node.multiplier],
            self.constants[node.bias], self.steps[node.x],
        )  # fmt: skip
        codes, axis, scale, after = folded.codes, 0, folded.scale, folded.sign
        if kind == 'MatMul':
            codes, axis = codes.T, 1
        if kind == 'ConvTranspose':
            # ONNX wants (C, K / groups, R, S), whose axes tell output channels of one group alone.
            groups = attributes['group']
            codes = codes.reshape(groups, -1, *codes.shape[1:]).swapaxes(1, 2)
            codes, axis = codes.reshape(-1, *codes.shape[2:]), 1
            if groups > 1:
                after = scale if after is None else scale * after
                scale = np.ones(codes.shape[1], np.float32)
        weight = g.constant(codes, np.int8, name=f'{name}.weight')
        zero = g.constant(np.zeros(len(scale)), np.int8)
        scales = g.constant(scale, np.float32, name=f'{name}.weight_scale')
        weight = g.op(
            'DequantizeLinear', weight, scales, zero, axis=axis, name=f'{name}.weight_value'
        )
        shape = (-1,) if isinstance(node, ir.Linear) else (-1, 1, 1)
        if after is None and kind != 'MatMul':
            bias = g.constant(folded.bias, np.float32, name=f'{name}.bias')
            v = g.op(kind, self._value(node.x), weight, bias, name=f'{name}.sum', **attributes)
        else:
            v = g.op(kind, self._value(node.x), weight, name=f'{name}.sum', **attributes)
            if after is not None:
                v = g.op('Mul', v, g.constant(after.reshape(shape), np.float32))
            v = g.op('Add', v, g.constant(folded.bias.reshape(shape), np.float32))
        self._finish(node, self._epilogue(node, v))

    def _epilogue(self, node: ir.Product, v: str) -> str:
        added = node.residual
        fused = node.activation in ('identity', 'relu', 'relu6') and node.residual is None
        # A relu may be left out where the lowest code stands for zero.
        fused &= node.activation == 'identity' or not (node.type.signed or node.type.offset)
        # Only a range that ends at or below 6 makes saturation do what the clip does.
        fused &= node.activation != 'relu6' or (node.type.exponent or 0) <= 2
        if self.target.extra_pairs and node.type.is_codes and not fused:
            v = self._pair(node, v)
        if added is not None and not node.residual_last:
            v = self.g.op('Add', v, self._value(added))
        v = activated(self.g, v, node.activation, node.slope)
        if added is not None and node.residual_last:
            v = self.g.op('Add', v, self._value(added))
        return v

    def _pointwise(self, node: ir.Activated, v: str) -> None:
        self._finish(node, activated(self.g, v, node.activation, node.slope))

    def _add(self, node: ir.Add) -> None:
        self._pointwise(node, self.g.op('Add', self._value(node.x), self._value(node.other)))

    def _mul(self, node: ir.Mul) -> None:
        self._pointwise(node, self.g.op('Mul', self._value(node.x), self._value(node.other)))

    def _activate(self, node: ir.Activate) -> None:
        self.rounded.add(self.names[node.x])
        self._pointwise(node, self._value(node.x))

    def _affine(self, node: ir.Affine) -> None:
        # Values are codes times a power of two, so the products are those of the codes.
        factor = self._array(node.multiplier) * np.float32(2.0 ** -self.steps[node.x])
        shape = (1, -1, 1, 1) if self._rank(node.x) == 4 else (-1,)
        bias = self._array(node.bias)
        self._pointwise(node, scaled_channels(self.g, self._value(node.x), factor, bias, shape))

    def _groupnorm(self, node: ir.GroupNorm) -> None:
        values = self._array(node.weight), self._array(node.bias), self._rank(node.x)
        v = group_norm(self.g, self._value(node.x), node.groups, node.eps, *values)
        self._pointwise(node, v)

    def _layernorm(self, node: ir.LayerNorm) -> None:
        values = self._array(node.weight), self._array(node.bias), self._rank(node.x) != 4
        self._pointwise(node, layer_norm(self.g, self._value(node.x), node.eps, *values))

    def _avgpool(self, node: ir.AvgPool) -> None:
        self._finish(
            node, average_pool(self.g, node, self._value(node.x), self.types[node.x].offset)
        )

    def _concat(self, node: ir.Concat) -> None:
        if self.target.concat_codes:
            codes = [self.names[name] for name in node.tensors]
            name = f'{self.prefix}{node.name}'
            self._define(node, self.g.op('Concat', *codes, axis=1, name=name))
            if not self._shifted.isdisjoint(codes):
                self._shifted.add(self.names[node.name])
            return
        values = [self._value(name) for name in node.tensors]
        self._finish(node, self.g.op('Concat', *values, axis=1))

    def _maxpool(self, node: ir.MaxPool) -> None:
        v = self.g.op(
            'MaxPool', self._value(node.x), kernel_shape=list(node.kernel),
            strides=list(node.stride), pads=[*node.padding, *node.padding],
            dilations=list(node.dilation), ceil_mode=int(node.ceil_mode),
        )  # fmt: skip
        self._finish(node, v)

    def _upsample(self, node: ir.Upsample) -> None:
        g, x = self.g, self._value(node.x)
        options = dict(
            mode='nearest', coordinate_transformation_mode='asymmetric', nearest_mode='floor'
        )
        if node.like is None:
            assert node.scale is not None  # a graph has one of the two
            scales = g.floats(1.0, 1.0, *(float(s) for s in node.scale))
            self._finish(node, g.op('Resize', x, '', scales, **options))
            return
        outer = g.op('Shape', x, start=0, end=2)
        inner = g.op('Shape', self._value(node.like), start=2, end=4)
        sizes = g.op('Concat', outer, inner, axis=0)
        self._finish(node, g.op('Resize', x, '', '', sizes, **options))

    def _slice(self, node: ir.Slice) -> None:
        g, ends = self.g, [np.iinfo(np.int64).max] * 2
        parts = node.start, ends, (2, 3), node.step
        self._finish(node, g.op('Slice', self._value(node.x), *(g.integers(*v) for v in parts)))

    def _flatten(self, node: ir.Flatten) -> None:
        self._finish(node, self.g.op('Flatten', self._value(node.x), axis=1))

    def _roialign(self, node: ir.RoIAlign) -> None:
        levels = [self._value(name) for name in node.levels]
        self._finish(node, roi_align(self.g, node, levels, self._value(node.rois)))


def leaves_by_name(outputs: Any, path: str = '') -> dict[str, Any]:
    """Leaves of a graph's outputs, references or tensors, by the name that files give them."""
    if not isinstance(outputs, (Mapping, tuple, list)):
        return {path or 'output': outputs}
    items = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
    found: dict[str, Any] = {}
    for key, value in items:
        first = key if isinstance(key, str) else f'output_{key}'
        found |= leaves_by_name(value, f'{path}_{key}' if path else first)
    return found
