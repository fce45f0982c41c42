"""The interface of a backend, and what all of them share."""

from __future__ import annotations

import functools
import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .. import fixed_point as fp
from ..errors import ClipQError, first_line
from ..graph import ir
from ..graph.islands import call, check_call

BACKENDS: dict[str, type[Backend]] = {}
AUTO = {'cpu': ('cpu', 'reference'), 'cuda': ('cuda', 'int_mm', 'reference')}
"""Backends that ``'auto'`` tries on a kind of device, the best first; elsewhere the reference."""


def register_backend(cls: type[Backend]) -> type[Backend]:
    """Class decorator that makes a backend known under its ``name``."""
    BACKENDS[cls.name] = cls
    return cls


@functools.cache
def _warn(name: str, reason: str) -> None:
    """Say once why a faster backend is not taken."""
    print_log(f'mmclipq: backend {name!r} is not used: {reason}', 'current', logging.WARNING)


def _candidates(name: str, device: str) -> tuple[str, ...]:
    """Backends to try for ``name``: a fallback counts where ``'auto'`` would take it."""
    tried = AUTO.get(torch.device(device).type, ('reference',))
    if name == 'auto':
        return tried
    fallback = BACKENDS[name].fallback
    return (name, fallback) if fallback in tried else (name,)


def check_name(name: str) -> None:
    """Return if there is a backend called ``name``, or it is ``'auto'``.

    Raises:
        ClipQError: naming it and those that there are.
    """
    if name != 'auto' and name not in BACKENDS:
        raise ClipQError(f'found backend {name!r}, wanted one of {sorted(BACKENDS)} or auto')


def backend_class(name: str, device: str = 'cpu') -> type[Backend]:
    """The backend called ``name``, or its fallback; ``'auto'`` is the best one at hand. One warning
    says if it is slower than it could be.

    Raises:
        ClipQError: if there is no backend of this name, or it cannot run on ``device``.
    """
    check_name(name)
    *faster, last = _candidates(name, device)
    for candidate in faster:
        reason = BACKENDS[candidate].unavailable(device)
        if not reason:
            return BACKENDS[candidate]
        _warn(candidate, reason)
    if reason := BACKENDS[last].unavailable(device):
        raise ClipQError(f'backend {last!r}: {reason}')
    return BACKENDS[last]


def build_backend(
    name: str, graph: ir.Int8Graph, islands: nn.Module | None = None, device: str = 'cpu'
) -> Backend:
    """An executor of ``graph`` on the backend called ``name``, see :func:`backend_class`."""
    return backend_class(name, device)(graph, islands, device)


def find_entry(graph: ir.Int8Graph) -> ir.Quantize | None:
    """The step that makes codes of the graph's only input, if nothing else reads that."""
    inputs = [node for node in graph.nodes if isinstance(node, ir.Input)]
    if len(inputs) != 1 or inputs[0].type.is_codes:
        return None
    kept = {ref.name for ref in ir.iter_refs(graph.outputs)}
    readers = [node for node in graph.nodes if inputs[0].name in node.inputs]
    if inputs[0].name in kept or len(readers) != 1 or not isinstance(readers[0], ir.Quantize):
        return None
    return readers[0]


class Backend(ABC):
    """Executes an ``Int8Graph``.

    A subclass implements one method per kind of node, named after it in lower case, that takes the
    node and its input tensors and returns the result. Codes are int8 or uint8 tensors in NCHW
    order as seen from outside; how they lie in memory is the backend's own affair.

    Args:
        graph: What to execute.
        islands: The detector, or any module with the submodules and parameters that the graph's
            float steps name; None if there are none.
        device: Where to execute.

    Attributes:
        name: What it is called.
        fallback: Name of the backend that takes its place where it cannot run, on devices where
            ``'auto'`` would try that one; None if there is none.
        packages: Optional packages that only this backend needs.
        entry: From :func:`find_entry`; its codes may be given in place of the float32 input.
    """

    name: str
    fallback: str | None = None
    packages: tuple[str, ...] = ()

    @staticmethod
    def unavailable(device: str) -> str:
        """Why the backend cannot run on ``device``; empty if it can."""
        return ''

    @classmethod
    def import_packages(cls) -> None:
        """Import what only this backend needs, before the content of a file is at work."""
        for package in cls.packages:
            importlib.import_module(package)

    def __init__(
        self, graph: ir.Int8Graph, islands: nn.Module | None = None, device: str = 'cpu'
    ) -> None:
        for node in graph.nodes:
            if isinstance(node, ir.FloatCall):
                check_call(node)
        self.graph = graph
        self.entry = find_entry(graph)
        self.types = graph.tensors
        self.islands = islands
        self.device = torch.device(device)
        self.constants = {key: value.to(self.device) for key, value in graph.constants.items()}
        self._nodes = {node.name: node for node in graph.nodes}
        self._steps = [(node, self._method(node)) for node in graph.nodes]
        self._last_reads = graph.last_reads()

    def _method(self, node: ir.Node) -> Callable[..., Any] | None:
        if isinstance(node, (ir.Input, ir.FloatCall)):
            return None
        return getattr(self, type(node).__name__.lower())

    @torch.no_grad()
    def run(self, *inputs: Tensor, observe: Callable[[ir.Node, Any], None] | None = None) -> Any:
        """Outputs of the graph, float32 values or codes, in the structure of ``graph.outputs``.

        Args:
            *inputs: One tensor for each input node in order: codes as another graph on this backend
                gives them, float32 values, or in place of these the codes of :attr:`entry`.
            observe: Called with each node and its result, for tests and reports.

        Raises:
            GraphError: if an input has another dtype than its node's codes.
        """
        values: dict[str, Any] = {}
        given = iter(inputs)
        for (node, method), ended in zip(self._steps, self._last_reads, strict=True):
            if isinstance(node, ir.Input):
                result = self._read_input(node, next(given))
            else:
                result = self._computed(node, method, values)
            values[node.name] = result
            if observe is not None:
                observe(node, result)
            for name in ended:
                del values[name]
        return ir.map_refs(self.graph.outputs, lambda ref: self._output(ref.name, values))

    def _computed(
        self, node: ir.Node, method: Callable[..., Any] | None, values: Mapping[str, Any]
    ) -> Any:
        """Result of ``node``.

        Raises:
            GraphError: naming the node, whatever library finds that its inputs do not fit.
        """
        if method is None:
            return self._float_call(cast(ir.FloatCall, node), values)
        try:
            return method(node, *(values[name] for name in node.inputs))
        except ClipQError:
            raise
        except Exception as error:
            reason = first_line(error, None)
            raise ir.GraphError(
                f'{node.name}: found inputs that its {type(node).__name__} fails on ({reason}), '
                'wanted those of the detector that the file was made from'
            ) from error

    def _read_input(self, node: ir.Input, x: Any) -> Any:
        if not isinstance(x, Tensor):  # a number that a module is called with
            return x
        if not node.type.is_codes:
            x = self.entry_values(x)
            return x.to(self.device, torch.float32 if x.is_floating_point() else x.dtype)
        wanted = fp.code_dtype(node.type.signed)
        if x.dtype != wanted:
            raise ir.GraphError(f'{node.name}: found an input of {x.dtype}, wanted {wanted}')
        return self.from_codes(node, x.to(self.device))

    def entry_values(self, x: Tensor) -> Tensor:
        """Float32 values in place of codes of :attr:`entry`, which encoding gives again; anything
        else as it is."""
        if (entry := self._entry_of(x)) is None:
            return x
        return fp.decode(x, entry.type.range_exponent, offset=entry.type.offset)

    def _entry_of(self, x: Any) -> ir.Quantize | None:
        """:attr:`entry`, if ``x`` holds its codes."""
        if self.entry is None or not isinstance(x, Tensor):
            return None
        return self.entry if x.dtype == fp.code_dtype(self.entry.type.signed) else None

    def _output(self, name: str, values: Mapping[str, Any]) -> Any:
        node = self._nodes[name]
        return self.as_codes(node, values[name]) if node.type.is_codes else values[name]

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Codes of every tensor of the graph that holds codes, by name, on the CPU."""
        found: dict[str, Tensor] = {}

        def observe(node: ir.Node, result: Any) -> None:
            if node.type.is_codes:
                found[node.name] = self.as_codes(node, result).cpu()

        self.run(*inputs, observe=observe)
        return found

    def as_codes(self, node: ir.Node, result: Tensor) -> Tensor:
        """``result`` as int8 or uint8 codes in NCHW order."""
        return result

    def from_codes(self, node: ir.Node, codes: Tensor) -> Any:
        """Inverse of :meth:`as_codes`."""
        return codes

    def _float_call(self, node: ir.FloatCall, values: Mapping[str, Any]) -> Any:
        # Backends keep channels last. Some steps fail on that, and PyTorch's own round otherwise:
        # where its vectors end depends on how a tensor lies. What reads a mere shape may.
        in_order = node.kind == 'module' or node.reason != '' or node.target == 'view'

        def value(ref: ir.Ref) -> Any:
            found = values[ref.name]
            return found.contiguous() if in_order and isinstance(found, Tensor) else found

        args = ir.map_refs(node.args, value)
        kwargs = ir.map_refs(dict(node.kwargs), value)
        return call(node, args, kwargs, self.islands)

    @abstractmethod
    def quantize(self, node: ir.Quantize, x: Tensor) -> Any:
        """Float32 values to codes."""

    @abstractmethod
    def dequantize(self, node: ir.Dequantize, x: Any) -> Tensor:
        """Codes to float32 values."""

    @abstractmethod
    def requantize(self, node: ir.Requantize, x: Any) -> Any:
        """Codes to codes of another range."""

    @abstractmethod
    def conv(self, node: ir.Conv, x: Any, residual: Any = None) -> Any:
        """Convolution with its epilogue."""

    @abstractmethod
    def convtranspose(self, node: ir.ConvTranspose, x: Any, residual: Any = None) -> Any:
        """Transposed convolution with its epilogue."""

    @abstractmethod
    def linear(self, node: ir.Linear, x: Any, residual: Any = None) -> Any:
        """Matrix product with its epilogue."""

    @abstractmethod
    def add(self, node: ir.Add, x: Any, other: Any) -> Any:
        """Sum with activation."""

    @abstractmethod
    def activate(self, node: ir.Activate, x: Any) -> Any:
        """Activation alone."""

    @abstractmethod
    def mul(self, node: ir.Mul, x: Any, other: Any) -> Any:
        """Product of two tensors with activation."""

    @abstractmethod
    def avgpool(self, node: ir.AvgPool, x: Any) -> Any:
        """Average of each window."""

    @abstractmethod
    def affine(self, node: ir.Affine, x: Any) -> Any:
        """One multiplication and one addition per channel, with activation."""

    @abstractmethod
    def groupnorm(self, node: ir.GroupNorm, x: Any) -> Any:
        """Group normalization with activation."""

    @abstractmethod
    def layernorm(self, node: ir.LayerNorm, x: Any) -> Any:
        """Layer normalization with activation."""

    @abstractmethod
    def concat(self, node: ir.Concat, *tensors: Any) -> Any:
        """Codes side by side along the channels."""

    @abstractmethod
    def maxpool(self, node: ir.MaxPool, x: Any) -> Any:
        """Largest code of each window."""

    @abstractmethod
    def slice(self, node: ir.Slice, x: Any) -> Any:
        """Every so many rows and columns."""

    @abstractmethod
    def flatten(self, node: ir.Flatten, x: Any) -> Any:
        """Channels, rows and columns as one axis."""

    @abstractmethod
    def roialign(self, node: ir.RoIAlign, *levels_and_rois: Any) -> Any:
        """Averages of bilinear samples in regions."""

    @abstractmethod
    def upsample(self, node: ir.Upsample, x: Any, like: Any = None) -> Any:
        """Nearest neighbour."""
