"""Chooses the range of every tensor that becomes codes from what calibration observes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from ..calibration.observer import OctaveHistogram
from ..calibration.range_search import OFFSETS, activation_range
from ..graph.ir import TensorType
from .plan import PRODUCTS, Plan, Unit, tied_groups
from .tracer import Watched, plain


class Recorder(fx.Interpreter):
    """Runs a traced part in float and keeps statistics of every tensor that becomes codes.

    Attributes:
        histograms: Statistics by unit.
        batches: Number of times it ran.
        recording: Whether what it runs on joins the statistics.
    """

    def __init__(self, module: fx.GraphModule, plan: Plan) -> None:
        super().__init__(module)
        # It would add lines of its own to the one sentence of an error.
        self.extra_traceback = False
        self.histograms = {
            unit: OctaveHistogram(unit.path) for unit in plan.units if unit.wants_codes
        }
        self._of_node = {unit.node: histogram for unit, histogram in self.histograms.items()}
        self.batches = 0
        self.recording = True

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        return super().run(*args, **kwargs)

    def call_module(self, target: str, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        args, kwargs = plain(args), plain(kwargs)
        if isinstance(module.forward, Watched) and next(module.children(), None) is None:
            return module.forward.stock(*args, **kwargs)  # a call of the graph's own
        return module(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if self.recording and n in self._of_node:
            self._of_node[n].update(result)
        return result


def choose_types(
    plan: Plan,
    histograms: Mapping[Unit, OctaveHistogram],
    method: str,
    given: Mapping[Unit, TensorType],
    offsets: bool = True,
) -> dict[Unit, TensorType]:
    """Range and sign of every tensor that becomes codes.

    A layer's clip exponent bounds the tensor that it reads; where a residual, RoIAlign or a float
    step reads the same tensor, which training does not clip, the bound is kept by a
    requantization instead.

    Args:
        plan: The part's units.
        histograms: Statistics by unit.
        method: ``'mse'`` or ``'max'``.
        given: Inputs whose codes come from outside.
        offsets: Whether tensors that reach a little below zero may be uint8 with an offset.
    """
    users = plan.users()
    types = dict(given)
    sampled = {
        operand for unit in plan.units if unit.kind == 'roi_align' for operand in unit.operands
    }
    sampled |= set(plan.levels)
    for group in tied_groups(plan):
        if any(unit in given for unit in group):
            types.update(dict.fromkeys(group, next(given[u] for u in group if u in given)))
            continue
        signed = not all(unit.non_negative for unit in group)
        bounds: list[int | None] = []
        for unit in group:
            bounds += [_clip_bound(user, unit) for user in users[unit] if user not in group]
            if unit.read_unclipped:
                bounds.append(None)
        upper = None if not bounds or None in bounds else max(bounds)
        members = [histograms[unit] for unit in group]
        # RoIAlign reads zeros outside of a level, and its levels leave the graph as bare codes.
        tried = OFFSETS if offsets and sampled.isdisjoint(group) else ()
        found = activation_range(members, signed, method, upper, tried)
        types.update(dict.fromkeys(group, TensorType(*found)))
    return types


def _clip_bound(user: Unit, operand: Unit) -> int | None:
    """Clip exponent with which ``user`` reads ``operand``; a residual is not clipped."""
    if user.kind not in PRODUCTS or operand in user.operands[1:]:
        return None
    return user.layer.input_exponent
