"""Power-of-two exponents and integer multipliers for fixed-point toolchains.

A product's multiplier to output codes, ``m = multiplier / output step``, is written as
``mantissa * 2**-shift`` with a mantissa of 31 bits, the bias as an int32 in units of
``multiplier``, and the slope of a leaky relu in units of ``2**-16``. Integer hardware then rounds
``(acc + bias) * mantissa >> shift`` once, where the reference rounds the float32 product and the
float32 sum before it rounds to codes: single codes may differ by one step. A code that stands for
zero (``offset``) is subtracted from what is read, also in padding, and added to what is written.

Smooth activations after sums read a small table (:mod:`mmclipq.exporters.curve_tables`); alone they
are tables of 256 codes. Batch norms alone have mantissas and shifts as products have, with the bias
in units of ``2**-16`` output steps. Averages divide the sum by the count, rounded half up. Sums and
products of tensors and changes of range are shifts of exact integers, rounded half to even. Steps
that are no integers here are listed with the reason.

The backend ``table`` executes exactly these integers, so the tables are checked numerically; they
were not run on such hardware.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graph import ir
from .curve_tables import CurveTable, activated_codes, curve_of, entry

_BITS, _MAX_SHIFT = 31, 47
SLOPE_BITS = 16
"""Bits behind the point of a leaky relu's slope."""
BIAS_BITS = 16
"""Bits behind the point, in output steps, of the bias of a batch norm alone."""
_REASONS = {
    'GroupNorm': 'each image needs square roots and divisions of its own statistics',
    'LayerNorm': 'each pixel needs square roots and divisions of its own statistics',
    'RoIAlign': 'bilinear weights depend on regions in float32',
}
NOTE = 'checked numerically; not run on fixed-point hardware'


def mantissa_and_shift(value: float) -> tuple[int, int]:
    """``value`` as ``mantissa * 2**-shift``.

    The mantissa has 31 bits, or fewer where the shift reaches its limit of 47, beyond which a
    residual of 8 bits would leave 64 bits; for 0 it is 0.
    """
    if value == 0 or not math.isfinite(value):
        return 0, _BITS
    fraction, exponent = math.frexp(value)
    shift = min(_BITS - exponent, _MAX_SHIFT)
    mantissa = round(math.ldexp(fraction, exponent + shift))
    if abs(mantissa) == 2**_BITS:
        return mantissa // 2, shift - 1
    return mantissa, shift


def product_entry(graph: ir.Int8Graph, node: ir.Product) -> dict[str, Any]:
    """Integers of one product as JSON-like data."""
    types, constants = graph.tensors, graph.constants
    factor = constants[node.multiplier].double().numpy()
    bias = constants[node.bias].double().numpy()
    step = math.ldexp(1.0, node.type.step_exponent) if node.type.is_codes else 1.0
    pairs = [mantissa_and_shift(value / step) for value in factor]
    units = np.divide(bias, factor, out=np.zeros_like(bias), where=factor != 0)
    limit = 2**31 - 1
    return {
        'layer': node.name,
        'kind': type(node).__name__,
        'input': node.x,
        'input_exponent': types[node.x].exponent,
        'weight_exponents': constants[node.exponents].tolist(),
        'output_exponent': node.type.exponent,
        'mantissa': [pair[0] for pair in pairs],
        'shift': [pair[1] for pair in pairs],
        'bias': [int(v) for v in np.clip(np.rint(units), -limit, limit)],
        'bias_saturates': bool(
            (np.abs(units) > limit).any() or ((factor == 0) & (bias != 0)).any()
        ),
        'activation': node.activation,
        'slope': round(node.slope * 2**SLOPE_BITS),
        'residual': node.residual,
        'residual_last': node.residual_last,
    }


def affine_entry(graph: ir.Int8Graph, node: ir.Affine) -> dict[str, Any]:
    """Integers of a batch norm alone as JSON-like data."""
    step = math.ldexp(1.0, node.type.step_exponent)
    pairs = [mantissa_and_shift(v / step) for v in graph.constants[node.multiplier].tolist()]
    bias = graph.constants[node.bias].double().numpy() * (2**BIAS_BITS / step)
    return {
        'mantissa': [pair[0] for pair in pairs],
        'shift': [pair[1] for pair in pairs],
        'bias': [int(v) for v in np.rint(bias)],
    }


def _float_reason(node: ir.Node) -> str:
    """Why a step is not in the table; empty if it is, or is nothing but a change of form."""
    if isinstance(node, ir.FloatCall):
        return node.reason
    if type(node).__name__ in _REASONS:
        return _REASONS[type(node).__name__]
    computed = isinstance(node, (ir.Product, ir.Activate, ir.Affine))
    return 'its result is float32' if computed and not node.type.is_codes else ''


def _step_entry(graph: ir.Int8Graph, node: ir.Node) -> dict[str, Any]:
    found: dict[str, Any] = {
        'step': node.name, 'kind': type(node).__name__, 'inputs': list(node.inputs),
    }  # fmt: skip
    if isinstance(node, ir.Activated):
        found['activation'] = node.activation
        found['slope'] = round(node.slope * 2**SLOPE_BITS)
    if isinstance(node, ir.Activate):
        found['codes'] = activated_codes(graph, node)
    if isinstance(node, ir.Affine):
        found |= affine_entry(graph, node)
    return found


def _graph_entry(graph: ir.Int8Graph) -> dict[str, Any]:
    curves: dict[CurveTable, int] = {}

    def with_curve(node: ir.Node, found: dict[str, Any]) -> dict[str, Any]:
        made = curve_of(graph, node)
        number = None if made is None else curves.setdefault(made, len(curves))
        return {**found, 'curve': number}

    boundary = (ir.Input, ir.Quantize, ir.Dequantize, ir.FloatCall, ir.Product)
    left = {node.name: reason for node in graph.nodes if (reason := _float_reason(node))}
    products = [with_curve(node, product_entry(graph, node)) for node in graph.products()]
    steps = [
        with_curve(node, _step_entry(graph, node))
        for node in graph.nodes
        if not isinstance(node, boundary) and node.name not in left
    ]
    return {
        'tensors': {
            name: {
                'exponent': kind.exponent,
                'step_exponent': kind.step_exponent,
                'dtype': 'int8' if kind.signed else 'uint8',
                'offset': kind.offset,
            }
            for name, kind in graph.tensors.items()
            if kind.is_codes
        },
        'products': products,
        'steps': steps,
        'curves': [entry(made) for made in curves],
        'float_steps': left,
    }


def table(graphs: Sequence[ir.Int8Graph], facts: dict[str, Any]) -> dict[str, Any]:
    """Exponents of every tensor and integers of every step of ``graphs`` as JSON-like data.

    Args:
        graphs: Integer graphs, the dense one first.
        facts: Facts to store beside.
    """
    return {
        'note': NOTE,
        **facts,
        'graphs': [_graph_entry(graph) for graph in graphs],
    }


def multiplier_error(graphs: Sequence[ir.Int8Graph]) -> float:
    """Largest error of the integer multipliers, relative for those of 31 bits.

    The others are so small that it is given in output steps of a sum of ``2**24``.
    """
    worst = 0.0
    for graph in graphs:
        for node in graph.products():
            step = math.ldexp(1.0, node.type.step_exponent) if node.type.is_codes else 1.0
            for value in graph.constants[node.multiplier].double().tolist():
                wanted = value / step
                mantissa, shift = mantissa_and_shift(wanted)
                error = abs(math.ldexp(mantissa, -shift) - wanted)
                small = abs(wanted) < 2.0 ** (_BITS - 1 - _MAX_SHIFT)
                worst = max(worst, error * 2.0**24 if small else error / abs(wanted))
    return worst


def c_header(content: dict[str, Any]) -> str:
    """The table as a C header of constant arrays."""
    lines = [
        f'/* Power-of-two exponents of an int8 detector; {NOTE}. */',
        '#ifndef MMCLIPQ_TABLE_H',
        '#define MMCLIPQ_TABLE_H',
        '#include <stdint.h>',
        '',
    ]
    for index, graph in enumerate(content['graphs']):
        for number, (name, tensor) in enumerate(graph['tensors'].items()):
            macro = f'CLIPQ_{index}_{number}_{_identifier(name).upper()}_STEP_EXPONENT'
            lines.append(f'#define {macro} ({tensor["step_exponent"]})')
            if tensor['offset']:
                lines.append(f'#define {macro[: -len("STEP_EXPONENT")]}OFFSET {tensor["offset"]}')
        for number, made in enumerate(graph['curves']):
            stem = f'clipq_{index}_curve_{number}'
            lines.append(_array('int32_t', f'{stem}_values', made['values']))
            lines.append(f'static const int32_t {stem}_lowest = {made["lowest"]};')
            lines.append(f'static const int32_t {stem}_bits = {made["bits"]};')
        for number, step in enumerate(graph['steps']):
            stem = f'clipq_{index}_step_{number}_{_identifier(step["step"])}'
            for kind, key in (('int16_t', 'codes'), *_SCALES[1:]):
                if key in step:
                    lines.append(_array(kind, f'{stem}_{key}', step[key]))
            if step['curve'] is not None:
                lines.append(f'#define {stem.upper()}_CURVE {step["curve"]}')
        for number, product in enumerate(graph['products']):
            stem = f'clipq_{index}_{number}_{_identifier(product["layer"])}'
            for kind, key in _SCALES:
                lines.append(_array(kind, f'{stem}_{key}', product[key]))
            if product['curve'] is not None:
                lines.append(f'#define {stem.upper()}_CURVE {product["curve"]}')
            if product['activation'] == 'leaky_relu':
                lines.append(f'static const int32_t {stem}_slope = {product["slope"]};')
    return '\n'.join([*lines, '', '#endif', ''])


_SCALES = (
    ('int8_t', 'weight_exponents'), ('int32_t', 'mantissa'), ('int16_t', 'shift'),
    ('int32_t', 'bias'),
)  # fmt: skip


def _array(kind: str, name: str, values: Sequence[int]) -> str:
    listed = ', '.join(str(value) for value in values)
    return f'static const {kind} {name}[{len(values)}] = {{{listed}}};'


def _identifier(name: str) -> str:
    return re.sub(r'\W', '_', name)
