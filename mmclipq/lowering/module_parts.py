"""Finds, while a detector predicts, the modules that can run as integer graphs of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ClipQError
from ..graph.ir import GraphError
from ..graph.signature import join_call, split_call
from ..layers import ClipMixin
from .agreement import same_results
from .capture import capture_module, evaluating
from .part import Lowering
from .plan import PRODUCTS
from .tracer import CaptureError, Watched, sentence

_CHECKED_SHAPES = 2


@dataclass
class ObservedModule:
    """A module that becomes a graph of its own, under observation.

    Attributes:
        path: Its path in the detector.
        form: The form of its calls, see :func:`mmclipq.graph.signature.split_call`.
        traced: Its traced computation.
        lowering: Makes the graph.
        checked: Shapes of inputs for which the trace gave the module's own results.
    """

    path: str
    form: Any
    traced: fx.GraphModule
    lowering: Lowering
    checked: set[tuple[torch.Size, ...]]


class ModuleParts:
    """Traces a detector's modules as they are called, the outermost that can be traced first.

    Inside :meth:`observing`, each call of a module with clipped layers that nothing else computes
    is answered by the module's trace, which collects the ranges. What cannot be traced, or gives
    other results than the module itself, runs as it is, and its children are tried.

    Args:
        detector: The prepared detector.
        outside: Paths of modules that are never tried, because something else answers for them.

    Attributes:
        parts: What was traced, by path.
        refused: Why other modules were not, by path.
        called: Paths of layers that are not clipped and run outside of every graph.
    """

    def __init__(self, detector: nn.Module, outside: Sequence[str] = ()) -> None:
        self.detector, self.outside = detector, set(outside)
        self.parts: dict[str, ObservedModule] = {}
        self.refused: dict[str, str] = {}
        self.called: set[str] = set()
        self._paused = False

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Inside, the detector's modules are tried and observed as they are called."""
        changed = []
        for path, module in self.detector.named_modules():
            has_layers = any(isinstance(child, ClipMixin) for child in module.modules())
            if not path or path in self.outside:
                continue
            if has_layers:
                watch = partial(self._call, path)
            elif next(module.parameters(recurse=False), None) is not None:
                watch = partial(self._note, path)
            else:
                continue
            changed.append((module, vars(module).get('forward')))
            vars(module)['forward'] = Watched(module.forward, watch)
        try:
            yield
        finally:
            for module, before in changed:
                del vars(module)['forward']
                if before is not None:
                    vars(module)['forward'] = before

    def _note(self, path: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._paused:
            self.called.add(path)
        return forward(*args, **kwargs)

    @contextmanager
    def _stock(self) -> Iterator[None]:
        """Inside, modules run as they are."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _call(self, path: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self._paused or path in self.refused:
            return forward(*args, **kwargs)
        try:
            if path not in self.parts:
                self.parts[path] = self._capture(path, args, kwargs)
            return self._run(self.parts[path], forward, args, kwargs)
        except GraphError as error:
            self._refuse(path, str(error))
        except ClipQError:  # what it computes is no number
            raise
        except Exception as error:
            self._refuse(path, f'{path}: found a trace that fails ({sentence(error)})')
        return forward(*args, **kwargs)

    def _refuse(self, path: str, reason: str) -> None:
        self.parts.pop(path, None)
        self.refused[path] = reason

    def _capture(self, path: str, args: Any, kwargs: Any) -> ObservedModule:
        with self._stock():
            form, traced = capture_module(self.detector, path, args, kwargs)
        lowering = Lowering(traced)
        if not any(unit.kind in PRODUCTS for unit in lowering.plan.units):
            raise CaptureError(f'{path}: found no convolution or linear layer outside its parts')
        return ObservedModule(path, form, traced, lowering, set())

    def _run(self, part: ObservedModule, forward: Any, args: Any, kwargs: Any) -> Any:
        form, leaves = split_call(args, kwargs)
        if form != part.form:
            raise CaptureError(f'{part.path}: found calls of several forms, wanted one')
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(tensor.numel() == 0 for tensor in tensors):
            with self._stock():
                return forward(*args, **kwargs)
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in part.checked and len(part.checked) < _CHECKED_SHAPES:
            self._check(part, forward, leaves)
            part.checked.add(shapes)
        return part.lowering.run(*leaves)

    @torch.no_grad()
    def _check(self, part: ObservedModule, forward: Any, leaves: Sequence[Any]) -> None:
        """Return if the trace gives the module's own results for this call."""

        def copied() -> list[Any]:
            return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        args, kwargs = join_call(part.form, copied())
        with self._stock(), evaluating(self.detector):
            wanted, found = forward(*args, **kwargs), part.traced(*copied())
        if not same_results(found, wanted):
            raise CaptureError(f'{part.path}: found a trace with other results than the module')
