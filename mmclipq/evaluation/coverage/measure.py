"""What a prediction multiplies, what its heads return, and which codes its graphs compute."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ...attention import Projection, join_attention, split_attention
from ...backends import Backend
from ...backends.compiled.backend import CompiledBackend
from ...graph import ir


def leaves(tree: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in nested sequences and dicts, in order."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from leaves(value)


def _matrix(module: nn.Module) -> Tensor | None:
    """The weight that ``module`` multiplies with; None if it has none."""
    own = module.weight if isinstance(module, Projection) else module._parameters.get('weight')
    return own if own is not None and own.dim() > 1 else None


def _watched(module: nn.Module) -> Tensor:
    """:func:`_matrix` of a module that has one, as all have whose calls are counted."""
    weight = _matrix(module)
    assert weight is not None
    return weight


class Work(TorchDispatchMode):
    """Counts multiply-adds inside, and finds the weights of the layers that run.

    Layers with a weight matrix, the projections of attention among them, are counted by their
    shapes, because PyTorch's counter does not know all of them; products of activations by
    PyTorch's counter.

    Args:
        model: Whose layers.

    Attributes:
        of_layers: Number of multiply-adds of layers.
        of_activations: The same of products of activations.
        weights: Number of weights by the identity of their parameter, or of their projection.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.of_layers = self.of_activations = 0
        self.weights: dict[int, int] = {}
        self._inside = 0
        self._handles = []
        self._split = split_attention(model)  # to layers that are called
        for module in model.modules():
            weight = _matrix(module)
            if weight is not None and not isinstance(module, nn.Embedding):
                self._handles.append(module.register_forward_pre_hook(self._enter))
                self._handles.append(module.register_forward_hook(self._leave))

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()
        join_attention(self._split)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None and not self._inside:
            self.of_activations += count(*args, **(kwargs or {}), out_val=out) // 2
        return out

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._inside += 1
        # Rows of a packed weight are another tensor each time.
        weight = _watched(module)
        owner = module if isinstance(module, Projection) else weight
        self.weights[id(owner)] = weight.numel()

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._inside -= 1
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        positions = args[0] if transposed else out
        # Some layers give several tensors, one for each dilation, say.
        count = sum(tensor.numel() for tensor in leaves(positions))
        self.of_layers += count * _watched(module)[0].numel()


def int8_share(graphs: Iterable[ir.Int8Graph], left: Work) -> tuple[int, int]:
    """Number of weights of layers in ``graphs``, and of these and those that still run in float.

    Args:
        graphs: Of an int8 detector; one may come several times.
        left: A prediction of that detector. A layer whose result nothing reads is in neither.
    """
    found = {id(graph): graph for graph in graphs}.values()
    weights = {node.weight: g.constants[node.weight] for g in found for node in g.products()}
    number = sum(weight.numel() for weight in weights.values())
    return number, number + sum(left.weights.values())


class Choices(TorchFunctionMode):
    """Records which elements ``topk`` takes, and which boxes follow; or repeats what it recorded.

    Two executions of a detector are comparable only if they go on with the same queries and the
    same regions, which the least difference of scores exchanges.
    """

    _METHODS = (('rpn_head', 'predict'), ('bbox_head', 'predict'), ('roi_head', 'predict_bbox'))

    def __init__(self) -> None:
        super().__init__()
        self._indices: list[Tensor] = []
        self._results: dict[str, list[Any]] = {}
        self._repeating: Iterator[Tensor] | None = None

    def repeat(self) -> Choices:
        """From now on what was recorded is repeated."""
        self._repeating = iter(self._indices)
        return self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func not in (torch.topk, Tensor.topk):
            return found
        if self._repeating is None:
            self._indices.append(found[1])
            return found
        wanted = next(self._repeating, None)
        if wanted is None or wanted.shape != found[1].shape:
            return found
        values = args[0] if args else kwargs['input']
        axis = kwargs.get('dim', args[2] if len(args) > 2 else -1)
        return torch.return_types.topk((values.gather(axis, wanted), wanted))

    @contextmanager
    def of(self, detector: nn.Module) -> Iterator[None]:
        """Inside, the detector's choices are recorded or repeated."""
        with ExitStack() as stack:
            for owner, method in self._METHODS:
                part = getattr(detector, owner, None)
                if isinstance(part, nn.Module) and hasattr(part, method):
                    stock, key = getattr(part, method), f'{owner}.{method}'
                    stack.enter_context(
                        mock.patch.object(part, method, self._following(key, stock))
                    )
            stack.enter_context(self)
            yield

    def _following(self, key: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(copy.deepcopy(self._results.get(key, [])))

        def method(*args: Any, **kwargs: Any) -> Any:
            result = stock(*args, **kwargs)
            if self._repeating is not None:
                return next(calls, result)
            self._results.setdefault(key, []).append(copy.deepcopy(result))
            return result

        return method


@contextmanager
def raw_outputs(detector: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What the heads of ``detector`` return inside, before anything is decoded, by head.

    Of an RoI head these are the scores, deltas and masks of all its stages.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, values: Any) -> None:
        found.setdefault(name, []).extend(tensor.clone() for tensor in leaves(values))

    with ExitStack() as stack:
        for name, module in detector.named_children():
            if name.endswith('head') and name != 'roi_head':
                handle = module.register_forward_hook(
                    lambda module, args, out, name=name: keep(name, out)
                )
                stack.callback(handle.remove)
        roi_head = getattr(detector, 'roi_head', None)
        for method, keys in (
            ('_bbox_forward', ('cls_score', 'bbox_pred')),
            ('_mask_forward', ('mask_preds',)),
        ):
            if hasattr(roi_head, method):
                stock = getattr(roi_head, method)

                def watched(*args: Any, _stock=stock, _keys=keys, **kwargs: Any) -> Any:
                    result = _stock(*args, **kwargs)
                    for key in _keys:
                        keep(f'roi_head {key}', result.get(key))
                    return result

                stack.enter_context(mock.patch.object(roi_head, method, watched))
        yield found


_LARGEST = 150.0


def decibels(noise: float) -> float:
    """A ratio of noise to signal in dB, signal over noise; at most 150."""
    return min(_LARGEST, -10 * math.log10(noise)) if noise > 0 else _LARGEST


def noise_ratios(wanted: Iterable[Tensor], found: Iterable[Tensor]) -> list[float]:
    """Of each tensor the mean squared error over the variance; without those that are constant.

    Raises:
        ValueError: if there are other tensors than wanted, or of other shapes.
    """
    wanted, found = list(wanted), list(found)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'found raw outputs of shapes {shapes[1]}, wanted {shapes[0]}')
    ratios = []
    for a, b in zip(wanted, found, strict=True):
        a, b = a.double(), b.double()
        variance = float(a.var(correction=0)) if a.numel() else 0.0
        if variance > 0:
            ratios.append(float((a - b).square().mean()) / variance)
    return ratios


@dataclass
class Execution:
    """What one run of a backend computed: its graph, all codes by name, its float outputs."""

    graph: ir.Int8Graph
    codes: dict[str, Tensor] = field(default_factory=dict)
    operations: int = 0
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def executions(kind: type[Backend]) -> Iterator[list[Execution]]:
    """Every run of a backend of that class inside, in order.

    All tensors of each run are watched, for which a compiled backend plans anew; so it runs twice,
    and the outputs are those of the unwatched run.
    """
    found: list[Execution] = []
    run = kind.run
    watching: list[Backend] = []

    def watched(self: Backend, *inputs: Tensor, observe: Any = None) -> Any:
        if watching or observe is not None:
            return run(self, *inputs, observe=observe)
        execution = Execution(self.graph)

        def look(node: ir.Node, value: Any) -> None:
            if isinstance(node, ir.Product):
                weight = self.graph.constants[node.weight]
                execution.operations += value.numel() * weight[0].numel()
            if node.type.is_codes:
                execution.codes[node.name] = self.as_codes(node, value).cpu().clone()

        watching.append(self)
        try:
            outputs = run(self, *inputs, observe=look)
            if isinstance(self, CompiledBackend):
                outputs = run(self, *inputs)
        finally:
            watching.pop()
        # Some heads decode in place, in these very tensors where their layout allows it.
        execution.outputs = [tensor.clone() for tensor in leaves(outputs)]
        found.append(execution)
        return outputs

    with mock.patch.object(kind, 'run', watched):
        yield found
