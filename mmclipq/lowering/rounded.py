"""The prepared float model with rounding on, tensor by tensor beside the integer graph.

This is the training simulation of what the graph computes: stock convolutions, batch norms and
activations in float32, each tensor rounded to its grid where the graph has codes. Batch norm
rounds in another order there, so single codes may differ by one step. Because a differing code
changes what the next layer reads, the count is also taken with every layer reading the integer
graph's own codes, which shows the layers' own differences alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .. import fixed_point as fp
from ..graph import ir
from .capture import evaluating
from .execution import unclipped
from .nodes import input_of, name_of
from .plan import PRODUCTS, make_plan


@dataclass(frozen=True)
class CodeDifference:
    """How one tensor's codes differ between two executions.

    Attributes:
        differing: Number of codes that differ.
        total: Number of codes.
        largest: Largest difference in steps.
    """

    differing: int
    total: int
    largest: int

    @property
    def rate(self) -> float:
        return self.differing / max(1, self.total)


def compare_codes(found: Tensor, wanted: Tensor) -> CodeDifference:
    """Difference of two tensors of codes of one shape and dtype."""
    distance = (found.int() - wanted.int()).abs()
    largest = int(distance.max()) if distance.numel() else 0
    return CodeDifference(int((distance > 0).sum()), distance.numel(), largest)


class RoundedExecution(fx.Interpreter):
    """Runs a traced part in float32 with the graph's rounding, like a backend.

    Args:
        module: The traced part that the graph was lowered from.
        graph: The graph, for ranges and weight codes.
        non_negative_input, levels: As they were in lowering.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        graph: ir.Int8Graph,
        non_negative_input: bool = False,
        levels: int = 0,
    ) -> None:
        super().__init__(module)
        self.name = 'rounded'
        self.int8_graph = graph
        types, nodes = graph.tensors, {node.name: node for node in graph.nodes}
        self._result: dict[fx.Node, tuple[str, ir.TensorType]] = {}
        self._product: dict[fx.Node, ir.Product] = {}
        left = {
            node.target: node.reason
            for node in graph.nodes
            if isinstance(node, ir.FloatCall) and node.kind == 'module'
        }
        for unit in make_plan(module, non_negative_input, levels, left).units:
            name = unit.path if types[unit.path].is_codes else f'{unit.path}.codes'
            if unit.wants_codes:
                self._result[unit.node] = name, types[name]
            if unit.kind in PRODUCTS:
                product = nodes[unit.path]
                assert isinstance(product, ir.Product)
                self._product[unit.start] = product
        self._types = types
        self._forced: Mapping[str, Tensor] = {}
        self.found: dict[str, Tensor] = {}

    @torch.no_grad()
    def run(
        self, *inputs: Tensor, forced: Mapping[str, Tensor] | None = None, **options: Any
    ) -> Any:
        """Float outputs for the part's inputs; the codes are in ``found`` afterwards.

        Args:
            *inputs: Float32 tensors, or codes where the graph reads codes.
            forced: Codes by tensor name that replace this execution's own once they are recorded.
            **options: Those of :class:`torch.fx.Interpreter`.
        """
        self._forced, self.found = forced or {}, {}
        nodes = [node for node in self.int8_graph.nodes if isinstance(node, ir.Input)]
        values = [
            x if x.is_floating_point() else _values(x, node.type)
            for node, x in zip(nodes, inputs, strict=True)
        ]
        with evaluating(self.module):
            return super().run(*values, **options)

    def run_node(self, n: fx.Node) -> Any:
        result = self._run_product(n) if n in self._product else super().run_node(n)
        if n not in self._result:
            return result
        name, kind = self._result[n]
        codes = fp.encode(result, kind.range_exponent, kind.signed, offset=kind.offset)
        self.found[name] = codes
        return _values(self._forced.get(name, codes), kind)

    def _run_product(self, n: fx.Node) -> Tensor:
        """The stock layer on the rounded input with the weights that the codes stand for."""
        product, layer = self._product[n], self.fetch_attr(name_of(n))
        kind = self._types[product.x]
        x = input_of(self, n)
        x = fp.quantize(x, kind.range_exponent, kind.signed, offset=kind.offset)
        constants = self.int8_graph.constants
        weight = fp.decode(constants[product.weight], constants[product.exponents], axis=0)
        if isinstance(product, ir.ConvTranspose):
            weight = weight.unflatten(0, (product.groups, -1)).transpose(1, 2).flatten(0, 1)
        with unclipped(layer, weight.to(x)):
            return layer(x)


def _values(codes: Tensor, kind: ir.TensorType) -> Tensor:
    return fp.decode(codes, kind.range_exponent, offset=kind.offset)


def compare_with_graph(
    execution: RoundedExecution, codes: Mapping[str, Tensor], *inputs: Tensor, forced: bool
) -> dict[str, CodeDifference]:
    """Per tensor, how the rounded model differs from the integer graph's ``codes``.

    Args:
        execution: The rounded model.
        codes: Codes of the reference backend for the inputs by tensor name.
        *inputs: Inputs of the part.
        forced: Whether every layer reads the graph's codes rather than the model's own.
    """
    execution.run(*inputs, forced=codes if forced else None)
    return {name: compare_codes(found, codes[name]) for name, found in execution.found.items()}
