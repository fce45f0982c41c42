"""Checks a ``.clipq`` file against the float detector that it was made from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._compat import as_detector
from ..apis.quantize_model import cannot_be_negative, preprocessed
from ..backends import build_backend
from ..detector import Int8Parts, executing
from ..errors import ClipQError
from ..lowering.capture import capture, evaluating
from ..lowering.rounded import CodeDifference, RoundedExecution, compare_with_graph

T = TypeVar('T')


@dataclass
class Verification:
    """What :func:`verify` counted, over all images.

    Attributes:
        images: Number of image batches.
        names: The tensors with codes.
        unequal: Tensors whose codes differ between the reference on integers and the graph on
            dequantized float64 values; must be empty.
        forced: Per tensor, the prepared model with rounding on against the reference, every layer
            reading the reference's codes.
        free: The same with every layer reading the prepared model's own tensors.
    """

    images: int = 0
    names: set[str] = field(default_factory=set)
    unequal: list[str] = field(default_factory=list)
    forced: dict[str, CodeDifference] = field(default_factory=dict)
    free: dict[str, CodeDifference] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f'{self.images} images, {len(self.names)} tensors',
            f'integers against dequantized float64: {len(self.unequal)} tensors differ'
            + (f', first {self.unequal[0]}' if self.unequal else ''),
        ]
        for title, found in (
            ('rounded float model, layer by layer', self.forced),
            ('rounded float model, free running', self.free),
        ):
            name, worst = max(found.items(), key=lambda item: item[1].rate)
            differing = sum(d.differing for d in found.values())
            total = sum(d.total for d in found.values())
            lines.append(
                f'{title}: {differing} of {total} codes differ, at most by '
                f'{max(d.largest for d in found.values())} step(s); worst tensor {name}: '
                f'{worst.rate * 1000:.4f} per 1,000'
            )
        return '\n'.join(lines)


def _add(sums: dict[str, CodeDifference], found: Mapping[str, CodeDifference]) -> None:
    for name, new in found.items():
        old = sums.get(name, CodeDifference(0, 0, 0))
        sums[name] = CodeDifference(
            old.differing + new.differing, old.total + new.total, max(old.largest, new.largest)
        )


def rounded_executions(model: nn.Module, parts: Int8Parts) -> list[RoundedExecution]:
    """The prepared float ``model``, part by part, with the rounding of the graphs made from it.

    Raises:
        ClipQError: if the features are no graph.
    """
    if parts.graph is None:
        raise ClipQError('found features that the detector computes in its own way, wanted a graph')
    traced = capture(model)
    non_negative = cannot_be_negative(as_detector(model).data_preprocessor)
    dense = RoundedExecution(traced.module, parts.graph, non_negative, traced.levels)
    boxes = zip(traced.boxes, parts.boxes, strict=True)
    return [dense, *(RoundedExecution(module, graph) for module, graph in boxes)]


class _Comparison:
    """Runs one part in all three ways, counts the differences, and goes on with the reference."""

    def __init__(
        self, name: str, model: nn.Module, execution: RoundedExecution, result: Verification
    ) -> None:
        graph = execution.int8_graph
        self.name, self.execution, self.result = name, execution, result
        self.reference = build_backend('reference', graph, model)
        self.simulated = build_backend('simulated', graph, model)

    def _named(self, found: Mapping[str, T]) -> dict[str, T]:
        return {f'{self.name}{key}': value for key, value in found.items()}

    def run(self, *inputs: Tensor) -> Any:
        codes, values = self.reference.codes(*inputs), self.simulated.codes(*inputs)
        self.result.names |= self._named(codes).keys()
        different = [name for name in codes if not torch.equal(codes[name], values[name])]
        self.result.unequal += [f'{self.name}{name}' for name in different]
        for sums, forced in ((self.result.forced, True), (self.result.free, False)):
            found = compare_with_graph(self.execution, codes, *inputs, forced=forced)
            _add(sums, self._named(found))
        return self.reference.run(*inputs)


@contextmanager
def rounded_detector(model: nn.Module, parts: Int8Parts) -> Iterator[nn.Module]:
    """``model`` as a detector that predicts from its own rounded execution while inside."""
    dense, *boxes = rounded_executions(model, parts)
    with executing(model, parts.head, dense, boxes):
        yield model


@torch.no_grad()
def verify(model: nn.Module, parts: Int8Parts, batches: Iterable[Any]) -> Verification:
    """Compare three executions of the same integers.

    Args:
        model: The prepared float detector with the checkpoint that the graphs were made from.
        parts: The integer graphs.
        batches: Batches of a dataloader, or preprocessed images, float32 ``(N, C, H, W)``.
    """
    result = Verification()
    names = ['', *(f'stage {index}: ' for index in range(len(parts.boxes)))]
    executions = zip(names, rounded_executions(model, parts), strict=True)
    dense, *boxes = (_Comparison(name, model, found, result) for name, found in executions)
    for images, samples in preprocessed(model, batches):
        result.images += 1
        if not boxes:
            dense.run(images)
            continue
        with evaluating(model), executing(model, parts.head, dense, boxes, parts.feature_exponents):
            as_detector(model).predict(images, samples)
    return result
