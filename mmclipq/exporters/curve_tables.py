"""Smooth activations in integers: straight lines between the entries of a small table.

The argument is a *fine code*, in units of 1/64 of the result's step and limited to where the
activation bends. Its upper bits choose a segment, its lower bits the place inside::

    u = clamp(u, lowest, lowest + (segments << bits) - 1) - lowest
    i, f = u >> bits, u & ((1 << bits) - 1)
    y = values[i] + (((values[i + 1] - values[i]) * f + (1 << (bits - 1))) >> bits)

The result ``y`` is in units of 1/64 of the step, too. Segments are as few as keep it within 1/16 of
a step of the activation, and at most 4096.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import fixed_point as fp
from ..graph import ir
from .curves import LINEAR, curve, interval

FINE_BITS = 6
"""Bits behind the point of a fine code."""
_SEGMENTS = tuple(2**k for k in range(4, 13))
_TOLERANCE = 1 / 16
_WHOLE = 1 / 2
"""Steps that a table with both far ends may be off before it is ended earlier."""


@dataclass(frozen=True)
class CurveTable:
    """One activation between tensors of given steps.

    Attributes:
        lowest: First fine code.
        bits: Of the place inside a segment.
        values: At the segments' ends, one more than there are segments.
        largest_error: Distance from the activation, in steps of the result.
    """

    lowest: int
    bits: int
    values: tuple[int, ...]
    largest_error: float

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Fine codes, int64, of the activation of the fine codes ``u``."""
        values = np.asarray(self.values, np.int64)
        u = np.clip(u - self.lowest, 0, ((len(values) - 1) << self.bits) - 1)
        place, inside = u >> self.bits, u & ((1 << self.bits) - 1)
        rise = (values[place + 1] - values[place]) * inside
        return values[place] + ((rise + (1 << self.bits >> 1)) >> self.bits)


@functools.lru_cache(maxsize=256)
def _made(
    activation: str, slope: float, step_exponent: int, lowest: int, highest: int
) -> CurveTable:
    # Where steps are so small that the far ends of a function that turns back would take most of
    # the table, sums do not get there, and the table ends where the result is first limited.
    arguments = activation, slope, step_exponent, lowest, highest
    whole = _over_interval(*arguments, near=False)
    if whole.largest_error <= _WHOLE:
        return whole
    return min(whole, _over_interval(*arguments, near=True), key=lambda made: made.largest_error)


def _over_interval(
    activation: str, slope: float, step_exponent: int, lowest: int, highest: int, near: bool
) -> CurveTable:
    unit = math.ldexp(1.0, step_exponent - FINE_BITS)
    step = math.ldexp(1.0, step_exponent)
    limits = (lowest - 1) * step, (highest + 1) * step
    function = curve(activation, slope)
    ends = interval(activation, slope, *limits, step * _TOLERANCE / 4, near)
    first = math.floor(ends[0] / unit)
    length = max(math.ceil(ends[1] / unit) - first, 1)
    for segments in _SEGMENTS:
        bits = max(0, math.ceil(math.log2(length / segments)))
        count = -(-length >> bits)
        knots = first + (np.arange(count + 1, dtype=np.int64) << bits)
        values = np.rint(np.clip(function(knots * unit), *limits) / unit).astype(np.int64)
        found = CurveTable(first, bits, tuple(values.tolist()), 0.0)
        # Between the knots, and beyond both ends, where the first and last values stand.
        beyond = 0 if near else length // 4
        u = np.unique(np.linspace(first - beyond, first + length + beyond, 8 * count + 17,
                                  dtype=np.int64))  # fmt: skip
        wanted = np.clip(function(u * unit), *limits) / unit
        error = float(np.abs(found(u) - wanted).max()) / 2**FINE_BITS
        if error <= _TOLERANCE or bits == 0:
            break
    return CurveTable(first, bits, found.values, error)


def curve_of(graph: ir.Int8Graph, node: ir.Node) -> CurveTable | None:
    """Table for the activation of ``node``; None if it needs none, or its result is float32."""
    if not isinstance(node, ir.Activated) or isinstance(node, ir.Activate):
        return None
    if node.activation in LINEAR or not node.type.is_codes:
        return None
    low, high = (code - node.type.offset for code in fp.code_range(node.type.signed))
    if isinstance(node, ir.Product) and node.residual is not None and node.residual_last:
        kind = graph.tensors[node.residual]
        relative = kind.step_exponent - node.type.step_exponent
        ends = [math.ldexp(code - kind.offset, relative) for code in fp.code_range(kind.signed)]
        low, high = math.floor(low - ends[1]), math.ceil(high - ends[0])
    return _made(node.activation, node.slope, node.type.step_exponent, low, high)


def activated_codes(graph: ir.Int8Graph, node: ir.Activate) -> list[int]:
    """Codes of the result for each code of the input, the lowest first."""
    kind = graph.tensors[node.x]
    codes = np.arange(fp.code_range(kind.signed)[0], fp.code_range(kind.signed)[1] + 1)
    values = np.ldexp((codes - kind.offset).astype(np.float64), kind.step_exponent)
    found = curve(node.activation, node.slope)(values)
    scaled = np.rint(np.ldexp(found, -node.type.step_exponent)) + node.type.offset
    return [int(code) for code in np.clip(scaled, *fp.code_range(node.type.signed))]


def entry(made: CurveTable) -> dict[str, Any]:
    """A table as JSON-like data."""
    return {
        'lowest': made.lowest,
        'bits': made.bits,
        'values': list(made.values),
        'largest_error_steps': made.largest_error,
    }
