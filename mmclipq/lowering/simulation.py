"""Runs a part in float32 with the graph's rounding, wholly or layer by layer, from any step on."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Target

from .. import fixed_point as fp
from ..graph.ir import TensorType
from .execution import Execution, unclipped
from .nodes import input_of
from .plan import PRODUCTS, Plan, Unit
from .ranges import bounded
from .weights import WeightCodes

_WITHOUT_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Simulation(Execution):
    """What the integer graph of a part computes, in float32 but for the order of sums.

    No step changes what it reads, so that an environment can be continued in several ways.

    Args:
        module: The traced part.
        plan: Its units.
        types: Of its tensors with codes; entries may be changed between runs.
        weights: Its weight codes.
        corrections: What each product lacks on average, by fx name.

    Attributes:
        only: Names of the layers' nodes whose input and weights are rounded, nothing else being so;
            None for the rounding of the whole graph.
        inputs, weights: Whether inputs, and weights, of those layers are rounded.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        plan: Plan,
        types: Mapping[Unit, TensorType],
        weights: WeightCodes,
        corrections: Mapping[str, Tensor],
    ) -> None:
        super().__init__(module)
        self.plan, self.types = plan, dict(types)
        self.only: Collection[str] | None = None
        self.inputs = self.weights = True
        self._weights, self._corrections = weights, corrections
        self._values: dict[str, Tensor] = {}
        self._products = {unit.start: unit for unit in plan.units if unit.kind in PRODUCTS}
        self._results = {unit.node: unit for unit in plan.units if unit.wants_codes}
        self.order = {node: index for index, node in enumerate(module.graph.nodes)}
        self._nodes = list(module.graph.nodes)

    @property
    def layers(self) -> dict[str, Unit]:
        """The products by the names of their nodes, in the order of execution."""
        return {unit.start.name: unit for unit in self._products.values()}

    def run_node(self, n: fx.Node) -> Any:
        unit = self._products.get(n)
        if unit is not None and (self.only is None or n.name in self.only):
            result = self._rounded(unit, input_of(self, n))
        else:
            result = super().run_node(n)
        if self.only is None and (read := self._results.get(n)) is not None:
            kind = self.types[read]
            return fp.quantize(result, kind.range_exponent, kind.signed, offset=kind.offset)
        return result

    def _rounded(self, unit: Unit, x: Tensor) -> Tensor:
        layer, name = unit.clipped, unit.start.name
        kind = bounded(self.types[unit.operands[0]], layer.input_exponent)
        if self.inputs:
            x = fp.quantize(x, kind.range_exponent, kind.signed, offset=kind.offset)
        path = unit.target
        if path not in self._values:
            self._values[path] = self._weights.values(unit).to(x)
        weight = self._values[path] if self.weights else layer.product_weight()
        with unclipped(layer, weight):
            result = super().call_module(path, (x,), {})
        if (correction := self._corrections.get(name)) is not None:
            shape = (-1,) if unit.kind == 'linear' else (-1, 1, 1)
            result = result + correction.to(result).view(shape)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get('inplace') or any(arg is True for arg in args):
            args = _copied(args)
        return super().call_function(_WITHOUT_PLACE.get(target, target), args, kwargs)

    def call_method(self, target: Target, args: Any, kwargs: Any) -> Any:
        assert isinstance(target, str)
        if target.endswith('_') and not target.endswith('__'):
            args = _copied(args)
        return super().call_method(target, args, kwargs)

    def call_module(self, target: Target, args: Any, kwargs: Any) -> Any:
        assert isinstance(target, str)
        module = self.fetch_attr(target)
        if getattr(module, 'inplace', False) or next(module.children(), None) is not None:
            args = _copied(args)
        return super().call_module(target, args, kwargs)

    def begin(self, *inputs: Any) -> dict[fx.Node, Any]:
        """An environment in which nothing but the inputs is known, for :meth:`advance`."""
        names = [node for node in self._nodes if node.op == 'placeholder']
        return dict(zip(names, inputs, strict=True))

    @torch.no_grad()
    def advance(self, env: dict[fx.Node, Any], start: int, stop: int | None = None) -> Any:
        """Run the nodes from number ``start`` up to ``stop`` in ``env``, which keeps what is read
        later.

        Args:
            env: Inputs, and the values of earlier nodes that are still read.
            start: Where ``env`` ended.
            stop: Where to end; None for the end of the part.

        Returns:
            The part's outputs if it ran to its end.
        """
        self.env = env
        for node in self._nodes[start:stop]:
            if node.op == 'placeholder':
                read = self._results.get(node) if self.only is None else None
                kind = None if read is None else self.types.get(read)
                if kind is not None:
                    x = env[node]
                    env[node] = fp.quantize(x, kind.range_exponent, kind.signed, offset=kind.offset)
                continue
            env[node] = self.run_node(node)
            if node.op == 'output':
                return env[node]
            for dead in self.user_to_last_uses.get(node, ()):
                env.pop(dead, None)
        return None

    def keep(self, *inputs: Any) -> dict[fx.Node, Any]:
        """Every node's value, for :meth:`again`."""
        collected, self.garbage_collect_values = self.garbage_collect_values, False
        try:
            self.run(*inputs)
            return dict(self.env)
        finally:
            self.garbage_collect_values = collected
            self.env = {}

    def again(self, env: Mapping[fx.Node, Any], changed: Iterable[fx.Node]) -> Any:
        """Outputs when only ``changed`` nodes, and what follows from them, are computed anew."""
        anew = set(changed)
        for node in self._nodes:
            if node.op == 'output' or not anew.isdisjoint(node.all_input_nodes):
                anew.add(node)
        inputs = [env[node] for node in self._nodes if node.op == 'placeholder']
        return self.run(*inputs, initial_env={n: v for n, v in env.items() if n not in anew})


def _copied(args: Any) -> Any:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
