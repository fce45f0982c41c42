"""Turns a traced, clipped detector part and calibration images into an ``Int8Graph``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import fixed_point as fp
from ..calibration.range_search import weight_exponents
from ..errors import ClipQError
from ..graph import ir, islands
from ..layers import ClipConvAdaptive
from . import patterns
from .capture import CaptureError, evaluating
from .plan import NORMS, PRODUCTS, Plan, Unit, make_plan
from .ranges import Recorder, choose_types

_ELEMENTWISE = {'add': ir.Add, 'mul': ir.Mul, 'activation': ir.Activate, 'avg_pool': ir.AvgPool}


@dataclass
class _Emitter:
    """Writes nodes; names tensors after layers so that reports and errors can be read."""

    module: fx.GraphModule
    plan: Plan
    types: dict[Unit, ir.TensorType]
    given: dict[Unit, ir.TensorType]
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
        if bound is None or bound >= kind.exponent:
            return name
        clipped = _bounded(kind, bound)
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
                codes = tuple(self.codes(operand) for operand in unit.operands)
                self.emit(ir.Concat(unit.path, self.types[unit], codes))
            elif unit.kind == 'max_pool':
                codes = self.codes(unit.operands[0])
                self.emit(ir.MaxPool(unit.path, self.types[unit], codes, **unit.options))
            elif unit.kind == 'slice':
                codes = self.codes(unit.operands[0])
                self.emit(ir.Slice(unit.path, self.types[unit], codes, **unit.options))
            elif unit.kind == 'flatten':
                self.emit(ir.Flatten(unit.path, self.types[unit], self.codes(unit.operands[0])))
            elif unit.kind == 'roi_align':
                levels = tuple(self.codes(operand) for operand in unit.operands)
                rois = self.values(unit.beside)
                self.emit(ir.RoIAlign(unit.path, self.types[unit], levels, rois, **unit.options))
            else:
                codes = self.codes(unit.operands[0])
                like = None if unit.beside is None else unit.beside.path
                self.emit(
                    ir.Upsample(unit.path, self.types[unit], codes, like=like, **unit.options)
                )
        outputs = self.outputs()  # may emit nodes
        return ir.Int8Graph(tuple(self.nodes), outputs, self.constants)

    def outputs(self) -> Any:
        """The outputs as values, except the levels that RoIAlign reads as codes."""
        tree = self.plan.output.args[0]
        if not self.plan.levels:
            return self.arguments(tree)
        levels = tuple(ir.Ref(self.codes(unit)) for unit in self.plan.levels)
        others = self.arguments({**tree, 'features': tree['features'][len(levels) :]})
        return {**others, 'features': levels + others['features']}

    def product(self, unit: Unit) -> ir.Product:
        layer, path = unit.layer, unit.start.target
        weight_key, exponents_key = f'{path}.weight', f'{path}.weight_exponents'
        if weight_key not in self.constants:
            weight = layer.product_weight().detach().cpu()
            if unit.kind == 'conv_transpose':  # output channels first, as in a convolution
                weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            exponents = weight_exponents(weight, layer.weight_exponent, weight_key)
            self.constants[exponents_key] = exponents
            self.constants[weight_key] = fp.encode(weight, exponents, axis=0)
        scale, shift = (value * unit.scale for value in fold_norm(layer, unit.norm))
        x = self.codes(unit.operands[0], layer.input_exponent)
        x_type = next(node.type for node in reversed(self.nodes) if node.name == x)
        exponents = fp.step_exponent(self.constants[exponents_key]) + x_type.step_exponent
        steps = fp.power_of_two(exponents).double()
        keys = {'multiplier': f'{unit.path}.multiplier', 'bias': f'{unit.path}.bias'}
        self.constants[keys['multiplier']] = (steps * scale).float()
        self.constants[keys['bias']] = shift.float()
        for key in keys.values():
            fp.check_finite(self.constants[key], key)
        residual = self.codes(unit.operands[1]) if len(unit.operands) == 2 else None
        keys |= {'weight': weight_key, 'exponents': exponents_key}
        fields = {'x': x, 'residual': residual, **keys, **unit.options}
        if unit.kind == 'linear':
            return ir.Linear(unit.path, self.type(unit), **fields)
        fields |= {
            'stride': tuple(layer.stride),
            'dilation': tuple(layer.dilation),
            'groups': layer.groups,
        }
        if unit.kind == 'conv_transpose':
            fields |= {
                'padding': tuple(layer.padding),
                'output_padding': tuple(layer.output_padding),
            }
            return ir.ConvTranspose(unit.path, self.type(unit), **fields)
        if isinstance(layer, ClipConvAdaptive):
            return ir.Conv(unit.path, self.type(unit), **fields, covering=True)
        padding = patterns.same_padding(layer)
        return ir.Conv(unit.path, self.type(unit), **fields, padding=padding)

    def norm(self, unit: Unit) -> ir.Affine | ir.Normalize:
        """The node of a norm that is fused to no product."""
        norm, x = unit.norm, self.codes(unit.operands[0])
        if unit.kind == 'affine':
            scale, shift = norm_factors(norm)
            step = math.ldexp(1.0, self.types[unit.operands[0]].step_exponent)
            keys = {'multiplier': f'{unit.path}.multiplier', 'bias': f'{unit.path}.bias'}
            values = (scale * step).float(), shift.float()
        else:
            path = unit.start.target
            keys = {'weight': f'{path}.weight', 'bias': f'{path}.bias'}
            channels = norm.num_channels if unit.kind == 'group_norm' else norm.normalized_shape[0]
            given = norm.weight, norm.bias
            values = tuple(
                torch.full((channels,), 1.0 - index) if value is None else value.detach().cpu()
                for index, value in enumerate(given)
            )
        for key, value in zip(keys.values(), values, strict=True):
            fp.check_finite(value, key)
            self.constants[key] = value.float()
        options = {**keys, **unit.options}
        if unit.kind == 'affine':
            return ir.Affine(unit.path, self.type(unit), x, **options)
        options['eps'] = float(norm.eps)
        if unit.kind == 'group_norm':
            options['groups'] = norm.num_groups
            return ir.GroupNorm(unit.path, self.type(unit), x, **options)
        return ir.LayerNorm(unit.path, self.type(unit), x, **options)

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
            kind, target = 'method', node.target
        else:
            kind = {'call_module': 'module', 'get_attr': 'parameter'}[node.op]
            target = node.target
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
                node = node.args[0]  # an identity
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


def _bounded(kind: ir.TensorType, bound: int) -> ir.TensorType:
    """Type of codes of ``kind`` clipped to the smaller range of ``bound``, as far below zero."""
    offset = kind.offset << (kind.exponent - bound)
    if offset <= max(ir.OFFSETS):
        return ir.TensorType(bound, kind.signed, offset)
    return ir.TensorType(bound, True)


def fold_norm(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 ``(channels,)``, that follow the product in evaluation mode.

    The batch norm stays out of the weights: it only scales and shifts the int32 sums.
    """
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    bias = layer.bias
    shift = torch.zeros(channels, dtype=torch.float64)
    if bias is not None:
        shift = bias.detach().double().cpu()
    if norm is None:
        return torch.ones(channels, dtype=torch.float64), shift
    scale, added = norm_factors(norm)
    return scale, shift * scale + added


def norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 ``(channels,)``, of a batch norm in evaluation mode."""
    scale = 1 / torch.sqrt(norm.running_var.double().cpu() + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach().double().cpu()
    shift = -norm.running_mean.double().cpu() * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double().cpu()
    return scale, shift


class Lowering:
    """Makes an integer graph in three steps: plan, observe calibration data, finish.

    Args:
        module: From :func:`mmclipq.lowering.capture.capture`.
        non_negative_input: Whether no preprocessed pixel can be negative, which gives the image
            uint8 codes.
        levels: How many of the part's features leave as codes of one range, for RoIAlign.

    Raises:
        ClipQError: naming the layer with NaN weights.
    """

    def __init__(
        self, module: fx.GraphModule, non_negative_input: bool = False, levels: int = 0
    ) -> None:
        self.module = module
        self.plan = make_plan(module, non_negative_input, levels)
        for unit in self.plan.units:
            if unit.layer is not None:
                fp.check_finite(unit.layer.weight, f'{unit.start.target}.weight')
        self._recorder = Recorder(module, self.plan)

    @torch.no_grad()
    def run(self, *inputs: Tensor) -> Any:
        """Float outputs of the part for one batch, whose tensors join the statistics.

        Raises:
            ClipQError: if a tensor holds NaN or infinity.
        """
        with evaluating(self.module):
            return self._recorder.run(*inputs)

    @property
    def seen(self) -> bool:
        """Whether it has run."""
        return self._recorder.batches > 0

    def stop_recording(self) -> None:
        """Keep what it runs on from now on out of the statistics."""
        self._recorder.recording = False

    def finish(
        self,
        method: str = 'mse',
        input_types: Sequence[ir.TensorType] = (),
        offsets: bool = True,
    ) -> ir.Int8Graph:
        """The integer graph.

        Args:
            method: How activation ranges are chosen, ``'mse'`` or ``'max'``.
            input_types: Types of the first inputs, where they arrive as codes.
            offsets: Whether uint8 codes may have an offset; without, as the paper has it, tensors
                that can be negative are int8.

        Raises:
            CaptureError: naming the step that can be neither int8 nor a float island.
            ClipQError: if nothing was observed, or a value is out of the range of exponents.
        """
        inputs = [unit for unit in self.plan.units if unit.kind == 'input']
        given = dict(zip(inputs, input_types, strict=False))
        if not self._recorder.batches:
            missing = 'regions' if input_types else 'images'
            raise ClipQError(f'calibration: found no {missing}, wanted at least one batch')
        types = choose_types(self.plan, self._recorder.histograms, method, given, offsets)
        return _Emitter(self.module, self.plan, types, given).run()


def lower(
    module: fx.GraphModule,
    images: Iterable[Tensor],
    method: str = 'mse',
    non_negative_input: bool = False,
) -> ir.Int8Graph:
    """The integer graph of a traced part that reads nothing but images.

    Args:
        module: From :func:`mmclipq.lowering.capture.capture`.
        images: Batches of preprocessed images, float32 ``(N, C, H, W)``.
        method, non_negative_input: As for :class:`Lowering`, whose errors are raised.
    """
    lowering = Lowering(module, non_negative_input)
    for batch in images:
        lowering.run(batch)
    return lowering.finish(method)
