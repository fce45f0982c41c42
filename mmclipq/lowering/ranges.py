"""Chooses the range of every tensor that becomes codes from what calibration observes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..calibration.observer import OctaveHistogram
from ..calibration.options import CalibrationOptions
from ..calibration.range_search import OFFSETS, CodeRange, activation_range
from ..graph.ir import TensorType
from .execution import Execution
from .plan import PRODUCTS, Plan, Unit, tied_groups


class Recorder(Execution):
    """Runs a traced part in float and keeps statistics of every tensor that becomes codes.

    Attributes:
        of_node: Statistics by the node that gives the tensor.
        batches: Number of times it ran.
        recording: Whether what it runs on joins the statistics.
    """

    def __init__(self, module: fx.GraphModule, plan: Plan) -> None:
        super().__init__(module)
        self.of_node = {
            unit.node: OctaveHistogram(unit.path) for unit in plan.units if unit.wants_codes
        }
        self.batches = 0
        self.recording = True

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if self.recording and n in self.of_node:
            self.of_node[n].update(result)
        return result


@dataclass(frozen=True, eq=False)
class RangeGroup:
    """Tensors whose codes share one range, and what bounds it.

    Attributes:
        units: The units that give them.
        signed: Whether their values can be negative.
        upper: Exponent that is never exceeded: the largest clip exponent of the layers that read
            them, None where something reads them unclipped.
        offsets: Codes of uint8 that may stand for zero.
    """

    units: tuple[Unit, ...]
    signed: bool
    upper: int | None
    offsets: tuple[int, ...]

    @property
    def name(self) -> str:
        """That of its first tensor."""
        return self.units[0].path

    @property
    def key(self) -> str:
        """Name of the fx node that gives its first tensor, whatever stays in float."""
        return self.units[0].node.name

    def statistics(self, histograms: Mapping[Unit, OctaveHistogram]) -> list[OctaveHistogram]:
        """Those of its tensors."""
        return [histograms[unit] for unit in self.units]


def range_groups(
    plan: Plan, given: Mapping[Unit, TensorType], offsets: bool = True
) -> Iterator[RangeGroup]:
    """Tensors whose range is to be chosen, those that share one together.

    A layer's clip exponent bounds the tensor that it reads; where a residual, RoIAlign or a float
    step reads the same tensor, which training does not clip, the bound is kept by a
    requantization instead.

    Args:
        plan: The part's units.
        given: Inputs whose codes come from outside.
        offsets: Whether tensors that reach a little below zero may be uint8 with an offset.
    """
    users = plan.users()
    sampled = {
        operand for unit in plan.units if unit.kind == 'roi_align' for operand in unit.operands
    }
    sampled |= set(plan.levels)
    for group in tied_groups(plan):
        if any(unit in given for unit in group):
            continue
        bounds: list[int | None] = []
        for unit in group:
            bounds += [clip_bound(user, unit) for user in users[unit] if user not in group]
            if unit.read_unclipped:
                bounds.append(None)
        upper = None if not bounds or None in bounds else max(b for b in bounds if b is not None)
        # RoIAlign reads zeros outside of a level, and its levels leave the graph as bare codes.
        tried = OFFSETS if offsets and sampled.isdisjoint(group) else ()
        signed = not all(unit.non_negative for unit in group)
        yield RangeGroup(tuple(group), signed, upper, tried)


def choose_types(
    plan: Plan,
    groups: Sequence[RangeGroup],
    histograms: Mapping[Unit, OctaveHistogram],
    options: CalibrationOptions,
    given: Mapping[Unit, TensorType],
    chosen: Mapping[str, CodeRange],
) -> dict[Unit, TensorType]:
    """Range and sign of every tensor that becomes codes.

    Args:
        plan: The part's units.
        groups: Its tensors by range.
        histograms: Statistics by unit.
        options: How ranges are chosen.
        given: Inputs whose codes come from outside.
        chosen: Ranges that stand, by the groups' keys.
    """
    types = dict(given)
    for tied in tied_groups(plan):
        if any(unit in given for unit in tied):
            types.update(dict.fromkeys(tied, next(given[u] for u in tied if u in given)))
    for group in groups:
        found = chosen.get(group.key) or activation_range(
            group.statistics(histograms),
            group.signed,
            options.method,
            group.upper,
            group.offsets,
            options.percentile,
        )
        types.update(dict.fromkeys(group.units, TensorType(*found)))
    return types


def clip_bound(user: Unit, operand: Unit) -> int | None:
    """Clip exponent with which ``user`` reads ``operand``; a residual is not clipped."""
    if user.kind not in PRODUCTS or operand in user.operands[1:]:
        return None
    return user.clipped.input_exponent


def bounded(kind: TensorType, bound: int | None) -> TensorType:
    """Type of codes of ``kind`` clipped to the range of ``bound``, as far below zero."""
    if bound is None or kind.exponent is None or bound >= kind.exponent:
        return kind
    offset = kind.offset << (kind.exponent - bound)
    if offset <= max(OFFSETS):
        return TensorType(bound, kind.signed, offset)
    return TensorType(bound, True)
