"""Writes the ``Int8Graph`` of a plan whose ranges are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import fixed_point as fp
from ..graph import ir, islands
from ..layers import ClipConv, ClipConvAdaptive, ClipConvTranspose
from . import patterns
from .nodes import name_of, tensor
from .norms import fold_norm, norm_factors
from .plan import NORMS, PRODUCTS, Plan, Unit
from .ranges import bounded
from .tracer import CaptureError
from .weights import WeightCodes

_ELEMENTWISE = {'add': ir.Add, 'mul': ir.Mul, 'activation': ir.Activate, 'avg_pool': ir.AvgPool}

_MANTISSA = 10
"""Bits kept of factors and biases where bytes count: an eighth of a step at the largest code."""


@dataclass
class Emitter:
    """Writes nodes; names tensors after layers so that reports and errors can be read."""

    module: fx.GraphModule
    plan: Plan
    types: dict[Unit, ir.TensorType]
    given: dict[Unit, ir.TensorType]
    weights: WeightCodes = field(default_factory=WeightCodes)
    corrections: Mapping[str, Tensor] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    emitted: set[str] = field(default_factory=set)

    def emit(self, node: ir.Node) -> str:
        if node.name not in self.emitted:
            self.emitted.add(node.name)
            self.nodes.append(node)
        return node.name

    def type(self, unit: Unit) -> ir.TensorType:
        return self.types.get(unit, ir.FLOAT)

    def is_float(self, unit: Unit) -> bool:
        """Whether the unit's own node gives float32, codes being made from it on demand."""
        if unit in self.given:
            return False
        return unit.kind in ('float', 'input') or not unit.wants_codes

    def codes(self, unit: Unit, bound: int | None = None) -> str:
        """Name of the unit's codes, clipped to the range of ``bound``."""
        name, kind = unit.path, self.types[unit]
        if self.is_float(unit):
            name = self.emit(ir.Quantize(f'{unit.path}.codes', kind, unit.path))
        if bound is None or bound >= kind.range_exponent:
            return name
        clipped = bounded(kind, bound)
        return self.emit(ir.Requantize(f'{unit.path}.clip{bound}', clipped, name))

    def values(self, unit: Unit) -> str:
        """Name of the unit's float32 values."""
        if self.is_float(unit):
            return unit.path
        return self.emit(ir.Dequantize(f'{unit.path}.float', ir.FLOAT, unit.path))

    def run(self) -> ir.Int8Graph:
        for unit in self.plan.units:
            if unit.kind == 'input':
                self.emit(ir.Input(unit.path, self.given.get(unit, ir.FLOAT)))
            elif unit.kind == 'float':
                self.emit(self.float_call(unit))
            elif unit.kind in PRODUCTS:
                self.emit(self.product(unit))
            elif unit.kind in _ELEMENTWISE:
                codes = [self.codes(operand) for operand in unit.operands]
                make = _ELEMENTWISE[unit.kind]
                self.emit(make(unit.path, self.types[unit], *codes, **unit.options))
            elif unit.kind in NORMS:
                self.emit(self.norm(unit))
            elif unit.kind == 'concat':
                tensors = tuple(self.codes(operand) for operand in unit.operands)
                self.emit(ir.Concat(unit.path, self.types[unit], tensors))
            elif unit.kind == 'max_pool':
                x = self.codes(unit.operands[0])
                self.emit(ir.MaxPool(unit.path, self.types[unit], x, **unit.options))
            elif unit.kind == 'slice':
                x = self.codes(unit.operands[0])
                self.emit(ir.Slice(unit.path, self.types[unit], x, **unit.options))
            elif unit.kind == 'flatten':
                self.emit(ir.Flatten(unit.path, self.types[unit], self.codes(unit.operands[0])))
            elif unit.kind == 'roi_align':
                assert unit.beside is not None  # the regions
                levels = tuple(self.codes(operand) for operand in unit.operands)
                rois = self.values(unit.beside)
                self.emit(ir.RoIAlign(unit.path, self.types[unit], levels, rois, **unit.options))
            else:
                x = self.codes(unit.operands[0])
                like = None if unit.beside is None else unit.beside.path
                self.emit(ir.Upsample(unit.path, self.types[unit], x, like=like, **unit.options))
        outputs = self.outputs()  # may emit nodes
        return ir.Int8Graph(tuple(self.nodes), outputs, self.constants)

    def outputs(self) -> Any:
        """The outputs as values, except the levels that RoIAlign reads as codes."""
        tree: Any = self.plan.output.args[0]
        if not self.plan.levels:
            return self.arguments(tree)
        levels = tuple(ir.Ref(self.codes(unit)) for unit in self.plan.levels)
        others = self.arguments({**tree, 'features': tree['features'][len(levels) :]})
        return {**others, 'features': levels + others['features']}

    def product(self, unit: Unit) -> ir.Product:
        layer, path = unit.clipped, unit.target
        weight_key, exponents_key = f'{path}.weight', f'{path}.weight_exponents'
        if weight_key not in self.constants:
            self.constants[weight_key], exponents = self.weights.of(unit)
            self.constants[exponents_key] = exponents
        scale, shift = (value * unit.scale for value in fold_norm(layer, unit.norm))
        if (correction := self.corrections.get(unit.start.name)) is not None:
            shift = shift + scale * correction
        x = self.codes(unit.operands[0], layer.input_exponent)
        x_type = next(node.type for node in reversed(self.nodes) if node.name == x)
        exponents = fp.step_exponent(self.constants[exponents_key]) + x_type.step_exponent
        steps = fp.power_of_two(exponents).double()
        keys = {'multiplier': f'{unit.path}.multiplier', 'bias': f'{unit.path}.bias'}
        self.constants[keys['multiplier']] = (steps * scale).float()
        self.constants[keys['bias']] = shift.float()
        if self.weights.rate:  # bits that no result depends on
            for key in keys.values():
                self.constants[key] = fp.rounded_mantissa(self.constants[key], _MANTISSA)
        for key in keys.values():
            fp.check_finite(self.constants[key], key)
        residual = self.codes(unit.operands[1]) if len(unit.operands) == 2 else None
        keys |= {'weight': weight_key, 'exponents': exponents_key}
        fields = {'x': x, 'residual': residual, **keys, **unit.options}
        if unit.kind == 'linear':
            return ir.Linear(unit.path, self.type(unit), **fields)
        assert isinstance(layer, (ClipConv, ClipConvTranspose))
        fields |= {
            'stride': tuple(layer.stride),
            'dilation': tuple(layer.dilation),
            'groups': layer.groups,
        }
        if isinstance(layer, ClipConvTranspose):
            fields |= {
                'padding': tuple(layer.padding),
                'output_padding': tuple(layer.output_padding),
            }
            return ir.ConvTranspose(unit.path, self.type(unit), **fields)
        if isinstance(layer, ClipConvAdaptive):
            return ir.Conv(unit.path, self.type(unit), **fields, covering=True)
        padding = patterns.same_padding(layer)
        assert padding is not None  # a layer that pads otherwise is no product
        return ir.Conv(unit.path, self.type(unit), **fields, padding=padding)

    def norm(self, unit: Unit) -> ir.Affine | ir.Normalize:
        """The node of a norm that is fused to no product."""
        norm, x = unit.norm, self.codes(unit.operands[0])
        assert norm is not None
        if isinstance(norm, (nn.GroupNorm, nn.LayerNorm)):
            keys = {'weight': f'{unit.target}.weight', 'bias': f'{unit.target}.bias'}
            channels = (
                norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.normalized_shape[0]
            )
            values = [
                torch.full((channels,), 1.0 - index) if value is None else value.detach().cpu()
                for index, value in enumerate((norm.weight, norm.bias))
            ]
        else:
            scale, shift = norm_factors(norm)
            step = math.ldexp(1.0, self.types[unit.operands[0]].step_exponent)
            keys = {'multiplier': f'{unit.path}.multiplier', 'bias': f'{unit.path}.bias'}
            values = [(scale * step).float(), shift.float()]
        for key, value in zip(keys.values(), values, strict=True):
            fp.check_finite(value, key)
            self.constants[key] = value.float()
        options: dict[str, Any] = {**keys, **unit.options}
        if isinstance(norm, nn.GroupNorm):
            options |= {'eps': float(norm.eps), 'groups': norm.num_groups}
            return ir.GroupNorm(unit.path, self.type(unit), x, **options)
        if isinstance(norm, nn.LayerNorm):
            options['eps'] = float(norm.eps)
            return ir.LayerNorm(unit.path, self.type(unit), x, **options)
        return ir.Affine(unit.path, self.type(unit), x, **options)

    def float_call(self, unit: Unit) -> ir.FloatCall:
        node = unit.node
        if node.op == 'call_function':
            if node.target not in islands.FUNCTION_NAMES:
                raise CaptureError(f'{unit.path}: found a call of {node.target}, wanted a function '
                                   'that a float island may call')  # fmt: skip
            if node.target is getattr and node.args[1] not in islands.SHAPE_ATTRIBUTES:
                raise CaptureError(f'{unit.path}: found a read of attribute {node.args[1]!r}, '
                                   f'wanted {sorted(islands.SHAPE_ATTRIBUTES)}')  # fmt: skip
            kind, target = 'function', islands.FUNCTION_NAMES[node.target]
        elif node.op == 'call_method':
            if node.target not in islands.METHODS:
                raise CaptureError(f'{unit.path}: found a call of method {node.target!r}, wanted a '
                                   'method that a float island may call')  # fmt: skip
            kind, target = 'method', name_of(node)
        else:
            kind = {'call_module': 'module', 'get_attr': 'parameter'}[node.op]
            target = name_of(node)
        shape_only = kind in ('function', 'method') and unit.options['reason'] == ''
        args = self.arguments(node.args, shape_only)
        kwargs = self.arguments(dict(node.kwargs), shape_only)
        return ir.FloatCall(
            unit.path,
            ir.FLOAT,
            kind,
            target,
            args,
            tuple(sorted(kwargs.items())),
            unit.options['reason'],
        )

    def arguments(self, tree: Any, shape_only: bool = False) -> Any:
        """``tree`` of fx nodes as plain containers of :class:`ir.Ref`."""
        if isinstance(tree, fx.Node):
            node = tree
            while node not in self.plan.of_node:
                node = tensor(node.args[0])  # an identity
            unit = self.plan.of_node[node]
            return ir.Ref(unit.path if shape_only else self.values(unit))
        if isinstance(tree, slice):
            parts = (tree.start, tree.stop, tree.step)
            return slice(*(self.arguments(part, shape_only) for part in parts))
        if isinstance(tree, dict):
            return {key: self.arguments(item, shape_only) for key, item in tree.items()}
        if isinstance(tree, (tuple, list)):
            items = [self.arguments(item, shape_only) for item in tree]
            return tuple(items) if isinstance(tree, tuple) else items
        return tree
