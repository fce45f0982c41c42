"""Follows shapes through a whole graph, float steps included, before anything is computed.

Integer nodes follow :mod:`mmclipq.graph.shapes`. Float steps run on PyTorch's *meta* tensors, which
have shapes and dtypes but no memory; what cannot run there runs on zeros, if that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .fields import MAX_ITEMS
from .ir import (
    Dequantize,
    FloatCall,
    GraphError,
    Input,
    Int8Graph,
    Node,
    Quantize,
    RoIAlign,
    map_refs,
)
from .islands import call, check_call
from .limits import LimitError, Limits
from .shapes import result_shape, steps_of
from .types import dtype_of

_SMALL = 10**6
"""Values of all inputs and results together up to which a step is tried on memory."""


class Unknown(Exception):
    """A float step whose result's shape only a run on values tells."""


def meta(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(tuple(shape), dtype=dtype, device='meta')


def _tensors(tree: Any, left: list[int]) -> list[Tensor]:
    """The tensors in a result, of which only plain containers, numbers and so on may be part."""
    left[0] -= 1
    if left[0] < 0:
        raise GraphError(f'found a result of more than {MAX_ITEMS} parts, wanted fewer')
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [tensor for item in tree for tensor in _tensors(item, left)]
    if isinstance(tree, dict):
        return [tensor for item in tree.values() for tensor in _tensors(item, left)]
    return []


def _mapped(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, '_fields'):
        return type(tree)(*(_mapped(item, function) for item in tree))
    if isinstance(tree, tuple):  # torch.Size and torch's own result types included
        return tuple(_mapped(item, function) for item in tree)
    if isinstance(tree, list):
        return [_mapped(item, function) for item in tree]
    if isinstance(tree, dict):
        return {key: _mapped(item, function) for key, item in tree.items()}
    return tree


def zeros(tree: Any, value: int = 0) -> Any:
    """``tree`` with zeros, or another value, of their shapes for tensors without memory."""
    return _mapped(tree, lambda x: torch.full(x.shape, value, dtype=x.dtype) if x.is_meta else x)


def noise(tree: Any, device: torch.device | str = 'cpu') -> Any:
    """``tree`` with the same noise at every call for tensors without memory.

    Floats are normal numbers times 3: as logits some are sure of themselves, as sides of boxes no
    two are alike, so that all code behind them has something to do.
    """
    generator = torch.Generator().manual_seed(0)

    def fill(x: Tensor) -> Tensor:
        if not x.is_meta:
            return x
        if x.is_floating_point():
            values = torch.randn(x.shape, generator=generator) * 3
        elif x.dtype in (torch.int8, torch.uint8):
            values = torch.randint(0, 128, x.shape, generator=generator)
        else:
            values = torch.zeros(x.shape)
        return values.to(device, x.dtype)

    return _mapped(tree, fill)


class _Counter(TorchDispatchMode):
    """Adds up the multiplications of matrix products, convolutions and attention.

    PyTorch's own counter knows the same operators, but imports its compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.products += count(*args, **(kwargs or {}), out_val=result) / 2
        return result


class _OnMeta:
    """The modules of a detector, called with parameters and inputs without memory."""

    def __init__(self, detector: nn.Module | None) -> None:
        self.detector = detector

    def get_submodule(self, target: str) -> Any:
        if self.detector is None:
            raise GraphError(f'found no detector, wanted one with {target!r}')
        module = self.detector.get_submodule(target)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        state = {name: meta(value.shape, value.dtype) for name, value in state.items()}
        return lambda *args, **kwargs: functional_call(module, state, args, kwargs)


class Inference:
    """Shapes and dtypes of every tensor of a graph.

    Args:
        graph: The graph.
        inputs: One tensor without memory for each input node in order; a number where a module is
            called with one.
        islands: The detector with the modules and parameters that float steps name.
        limits: On memory and work.
        run: Whether to run what has no form without memory on zeros; otherwise :class:`Unknown` is
            raised there.

    Attributes:
        outputs: Of the graph, in its structure, without memory.
        memory: Bytes of the tensors that are alive at once.
        work: Multiplications, or other steps per value.

    Raises:
        GraphError: naming the node that cannot read what it is given.
        LimitError: if memory or work are above the limits.
    """

    def __init__(
        self,
        graph: Int8Graph,
        inputs: Sequence[Any],
        islands: nn.Module | None = None,
        limits: Limits | None = None,
        run: bool = True,
    ) -> None:
        self.graph, self.islands, self.run = graph, islands, run
        self.limits = limits or Limits()
        self.memory = self.work = 0.0
        self._alive = 0.0
        self._values: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._sizes: dict[str, float] = {}
        wanted = sum(isinstance(node, Input) for node in graph.nodes)
        if len(inputs) != wanted:
            raise GraphError(f'found {len(inputs)} inputs, wanted {wanted} as the graph has')
        given = iter(inputs)
        for node, ended in zip(graph.nodes, graph.last_reads(), strict=True):
            self._keep(node, self._result(node, given))
            for name in ended:
                self._alive -= self._sizes.pop(name)
                self._values.pop(name), self._shapes.pop(name, None)
        self.outputs = map_refs(graph.outputs, lambda ref: self._values[ref.name])

    def _result(self, node: Node, given: Any) -> Any:
        if isinstance(node, Input):
            return self._input(node, next(given))
        if isinstance(node, FloatCall):
            return self._float_call(node)
        for name in node.inputs:
            if name not in self._shapes:
                raise GraphError(f'{node.name}: found {name!r} that is no tensor, wanted one')
        self._check_floats(node)
        shape = result_shape(node, self._shapes, self.graph.constants)
        return meta(shape, dtype_of(node.type))

    def _check_floats(self, node: Node) -> None:
        """Kernels read float32: an island may have made something else."""
        names = [node.x] if isinstance(node, Quantize) else []
        names += [node.rois] if isinstance(node, RoIAlign) else []
        for name in names:
            if self._values[name].dtype != torch.float32:
                raise GraphError(
                    f'{node.name}: found {self._values[name].dtype} of {name!r}, wanted float32'
                )

    def _input(self, node: Input, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if node.type.is_codes and value.dtype != dtype_of(node.type):
            raise GraphError(
                f'{node.name}: found an input of {value.dtype}, wanted {dtype_of(node.type)}'
            )
        floats = value.is_floating_point()
        return meta(value.shape, torch.float32 if floats else value.dtype)

    def _keep(self, node: Node, value: Any) -> None:
        tensors = _tensors(value, [MAX_ITEMS])
        size = float(sum(math.prod(t.shape) * t.element_size() for t in tensors))
        self._values[node.name], self._sizes[node.name] = value, size
        if isinstance(value, Tensor):
            self._shapes[node.name] = tuple(value.shape)
        self._alive += size
        self.memory = max(self.memory, self._alive)
        if isinstance(node, FloatCall):
            self.work += sum(math.prod(t.shape) for t in tensors)
        elif not isinstance(node, (Input, Dequantize)):
            self.work += steps_of(node, self._shapes, self.graph.constants)
        self.limits.check('memory', self.memory, node.name)
        self.limits.check('work', self.work, node.name)

    def _float_call(self, node: FloatCall) -> Any:
        check_call(node)
        args = map_refs(node.args, lambda ref: self._values[ref.name])
        kwargs = map_refs(dict(node.kwargs), lambda ref: self._values[ref.name])
        if node.kind == 'parameter':
            value = call(node, args, kwargs, self.islands)
            return meta(value.shape, value.dtype)
        try:
            with torch.no_grad(), _Counter() as counter:
                result = call(node, args, kwargs, _OnMeta(self.islands))
        except LimitError:
            raise
        except GraphError as error:
            if not isinstance(error.__cause__, (NotImplementedError, RuntimeError)):
                raise
            return self._on_zeros(node, args, kwargs)
        self.work += counter.products
        if node.kind in ('function', 'method'):
            self._try_on_values(node, args, kwargs, result)
        return _mapped(result, lambda x: meta(x.shape, x.dtype))

    def _try_on_values(self, node: FloatCall, args: Any, kwargs: Any, result: Any) -> None:
        """Return if the step takes its arguments.

        Without memory PyTorch accepts dtypes that an operator does not know, and axes that are not
        there (softmax).
        """
        if sum(map(Tensor.numel, _tensors((args, kwargs, result), [3 * MAX_ITEMS]))) > _SMALL:
            return
        with torch.no_grad():
            try:
                call(node, zeros(args), zeros(kwargs), self.islands)
            except GraphError:  # perhaps a division by zero
                call(node, zeros(args, 1), zeros(kwargs, 1), self.islands)

    def _on_zeros(self, node: FloatCall, args: Any, kwargs: Any) -> Any:
        """What the step makes of zeros, where tensors without memory do not tell."""
        if not self.run:
            raise Unknown(node.name)
        with torch.no_grad():
            result = call(node, zeros(args), zeros(kwargs), self.islands)
        return _mapped(result, lambda x: meta(x.shape, x.dtype))
