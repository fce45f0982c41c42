"""What every execution of a traced part in PyTorch shares, and a layer with other weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx
from torch.fx.node import Target

from ..layers import ClipMixin
from .tracer import Watched, plain


class Execution(fx.Interpreter):
    """Runs a traced part in float; subclasses look at its tensors or change them."""

    module: fx.GraphModule

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        # It would add lines of its own to the one sentence of an error.
        self.extra_traceback = False

    def call_module(self, target: Target, args: Any, kwargs: Any) -> Any:
        assert isinstance(target, str)
        module = self.fetch_attr(target)
        args, kwargs = plain(args), plain(kwargs)
        if isinstance(module.forward, Watched) and next(module.children(), None) is None:
            return module.forward.stock(*args, **kwargs)  # a call of the graph's own
        return module(*args, **kwargs)


@contextmanager
def unclipped(layer: ClipMixin, weight: Tensor) -> Iterator[None]:
    """Inside, ``layer`` multiplies with ``weight`` of its own shape and clips nothing."""
    state = layer.input_exponent, layer.weight_exponent, layer.rounded
    layer.input_exponent = layer.weight_exponent = None
    layer.rounded = False
    # Of this layer alone, and only while inside.
    layer.product_weight = lambda: weight  # type: ignore[method-assign]
    try:
        yield
    finally:
        layer.input_exponent, layer.weight_exponent, layer.rounded = state
        del layer.product_weight
