"""A float detector's layers, each able to compute what the integer graph makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .. import fixed_point as fp
from ..detector import Int8Parts
from ..errors import ClipQError
from ..graph import ir
from ..layers import ClipMixin

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a layer as an integer graph computes it.

    Attributes:
        node: The product.
        kind: The codes that it reads.
        exponent: Their range exponent.
        scale, shift: What norm and bias make of the product without a bias, float32
            ``(channels,)``: ``v = product * scale + shift``.
        dense: Whether it belongs to the graph of backbone, neck and dense head.
    """

    node: ir.Product
    kind: ir.TensorType
    exponent: int
    scale: Tensor
    shift: Tensor
    dense: bool

    @classmethod
    def of(cls, node: ir.Product, graph: ir.Int8Graph, dense: bool) -> Call:
        kind, constants = graph.tensors[node.x], graph.constants
        assert kind.exponent is not None  # of what a product reads
        steps = fp.step_exponent(constants[node.exponents]) + kind.step_exponent
        # Powers of two, so that this division is exact.
        scale = constants[node.multiplier] / fp.power_of_two(steps)
        return cls(node, kind, kind.exponent, scale, constants[node.bias], dense)

    def rounded(self, x: Tensor) -> Tensor:
        """``x`` on the grid of the codes that the layer reads, float32."""
        kind = self.kind
        return fp.quantize(x, self.exponent, kind.signed, offset=kind.offset)

    def normed(self, result: Tensor, bias: Tensor | None) -> Tensor:
        """A layer's ``result`` behind its norm, before the activation."""
        shape = [1] * result.dim()
        shape[-1 if isinstance(self.node, ir.Linear) else 1] = -1
        if bias is not None:
            result = result - bias.view(shape)
        return result * self.scale.to(result).view(shape) + self.shift.to(result).view(shape)


class Int8Layers:
    """The layers of a detector that a file computes in int8, under the detector's own names.

    The detector computes in float. Inside :meth:`rounding` chosen layers read their inputs rounded
    to the codes' grid and multiply by the weights that the codes stand for, so that one layer's
    int8 can be looked at with everything else in float, in whatever detector it stands. What a
    layer's result is rounded to counts where it is read. Sums of residuals and float32 steps stay
    in float.

    Args:
        model: The float detector, prepared (:func:`mmclipq.prepare_model`). Its clip ranges, if it
            has any, limit the layers that are not rounded.
        parts: The integer graphs.

    Attributes:
        names: The layers, in the order in which they are computed.

    Raises:
        ClipQError: if the graphs are those of another detector.
    """

    def __init__(self, model: nn.Module, parts: Int8Parts) -> None:
        self.model: Any = model
        self._codes: dict[str, tuple[Tensor, Tensor]] = {}
        self._calls: dict[str, list[Call]] = {}
        for graph in parts.graphs:
            for node in graph.products():
                name = node.weight.removesuffix('.weight')
                codes = graph.constants[node.weight], graph.constants[node.exponents]
                self._codes.setdefault(name, codes)
                calls = self._calls.setdefault(name, [])
                calls.append(Call.of(node, graph, graph is parts.graph))
        self.names = list(self._calls)
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in self.names:
            layer, weight = modules.get(name), self.int8_weight(name)
            if not isinstance(layer, ClipMixin) or layer.weight.shape != weight.shape:
                raise ClipQError(
                    f'found the int8 layer {name}, which {type(model).__name__} does not have in '
                    'this form; wanted the file of the same config and checkpoint'
                )

    def layer(self, name: str) -> Any:
        """The float layer."""
        return self.model.get_submodule(name)

    def calls(self, name: str) -> Sequence[Call]:
        """The layer's calls, one for each time that a prediction comes to it."""
        return self._calls[name]

    def codes(self, name: str) -> tuple[Tensor, Tensor]:
        """int8 weight codes, output channels first, and their int32 exponents ``(channels,)``."""
        return self._codes[name]

    def float_weight(self, name: str) -> Tensor:
        """The weights that enter the float product, on the CPU."""
        return self.layer(name).product_weight().detach().cpu()

    def int8_weight(self, name: str) -> Tensor:
        """The values of the weight codes, float32, in the float layer's own layout."""
        codes, exponents = self._codes[name]
        weight = fp.decode(codes, exponents, axis=0)
        (node, *_) = (call.node for call in self._calls[name])
        if isinstance(node, ir.ConvTranspose):
            weight = weight.unflatten(0, (node.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight

    @contextmanager
    def rounding(self, names: Iterable[str]) -> Iterator[None]:
        """Inside, the layers ``names`` compute what int8 makes of them, and the others in float."""

        with ExitStack() as stack:
            for name in names:
                answer = partial(self._rounded, name, self.int8_weight(name))
                stack.enter_context(self._answered(name, answer))
            yield

    def _rounded(
        self, name: str, weight: Tensor, call: Call, forward: Forward, *inputs: Any
    ) -> Tensor:
        return self.product(name, weight, call, forward, *inputs)

    @contextmanager
    def watching(self, watch: Callable[..., Tensor]) -> Iterator[None]:
        """Inside, ``watch(name, call, forward, *inputs)`` answers every call of a layer.

        ``forward`` is the layer's own.
        """

        with ExitStack() as stack:
            for name in self.names:
                stack.enter_context(self._answered(name, partial(watch, name)))
            yield

    @contextmanager
    def _answered(self, name: str, answer: Callable[..., Tensor]) -> Iterator[None]:
        """Inside, ``answer(call, stock forward, *inputs)`` answers calls of the layer."""
        layer = self.layer(name)
        before, stock = vars(layer).get('forward'), layer.forward
        # A prediction comes to all calls of a layer in their order, then to the first one again.
        calls = itertools.cycle(self._calls[name])

        def forward(*inputs: Any) -> Tensor:
            return answer(next(calls), stock, *inputs)

        vars(layer)['forward'] = forward
        try:
            yield
        finally:
            del vars(layer)['forward']
            if before is not None:
                vars(layer)['forward'] = before

    def product(
        self, name: str, weight: Tensor, call: Call, forward: Forward, x: Tensor, *others: Any
    ) -> Tensor:
        """A layer's float32 result from rounded inputs and the values of its weight codes.

        Args:
            name: The layer.
            weight: What :meth:`int8_weight` gives.
            call: What it reads.
            forward: Its own forward.
            x: Its float input.
            *others: Further arguments of the forward.
        """
        layer = self.layer(name)
        state = layer.input_exponent, layer.weight_exponent
        layer.input_exponent = layer.weight_exponent = None
        layer.product_weight = lambda: weight.to(x)
        try:
            return forward(call.rounded(x), *others)
        finally:
            layer.input_exponent, layer.weight_exponent = state
            del layer.product_weight
