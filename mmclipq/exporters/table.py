"""Power-of-two exponents and integer multipliers for fixed-point toolchains.

A product's multiplier to output codes, ``m = multiplier / output step``, is written as
``mantissa * 2**-shift`` with a mantissa of 31 bits, the bias as an int32 in units of
``multiplier``, and the slope of a leaky relu in units of ``2**-16``. Integer hardware then rounds
``(acc + bias) * mantissa >> shift`` once, where the reference rounds the float32 product and the
float32 sum before it rounds to codes: single codes may differ by one step. The backend ``table``
executes exactly these integers, so the tables are checked numerically; they were not run on such
hardware.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graph import ir

_BITS, _MAX_SHIFT = 31, 47
SLOPE_BITS = 16
"""Bits behind the point of a leaky relu's slope."""
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


def table(graphs: Sequence[ir.Int8Graph], facts: dict[str, Any]) -> dict[str, Any]:
    """Exponents of every tensor and product of ``graphs`` as JSON-like data.

    Args:
        graphs: Integer graphs, the dense one first.
        facts: Facts to store beside.
    """
    return {
        'note': NOTE,
        **facts,
        'graphs': [
            {
                'tensors': {
                    name: {
                        'exponent': kind.exponent,
                        'step_exponent': kind.step_exponent,
                        'dtype': 'int8' if kind.signed else 'uint8',
                    }
                    for name, kind in graph.tensors.items()
                    if kind.is_codes
                },
                'products': [product_entry(graph, node) for node in graph.products()],
            }
            for graph in graphs
        ],
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
        for number, product in enumerate(graph['products']):
            stem = f'clipq_{index}_{number}_{_identifier(product["layer"])}'
            arrays = (
                ('int8_t', 'weight_exponents'), ('int32_t', 'mantissa'),
                ('int16_t', 'shift'), ('int32_t', 'bias'),
            )  # fmt: skip
            for kind, key in arrays:
                values = ', '.join(str(value) for value in product[key])
                lines.append(
                    f'static const {kind} {stem}_{key}[{len(product[key])}] = {{{values}}};'
                )
            if product['activation'] == 'leaky_relu':
                lines.append(f'static const int32_t {stem}_slope = {product["slope"]};')
    return '\n'.join([*lines, '', '#endif', ''])


def _identifier(name: str) -> str:
    return re.sub(r'\W', '_', name)
