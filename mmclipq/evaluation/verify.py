"""Checks a ``.clipq`` file against the float detector that it was made from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..apis.quantize import cannot_be_negative
from ..backends import build_backend
from ..detector import captured_layers, to_int8
from ..graph.capture import Captured, capture
from ..graph.ir import Int8Graph
from ..graph.rounded import CodeDifference, RoundedExecution, compare_with_graph


@dataclass
class Verification:
    """What :func:`verify` counted, over all images.

    Attributes:
        images: Number of image batches.
        tensors: Number of tensors with codes.
        unequal: Tensors whose codes differ between the reference on integers and the graph on
            dequantized float64 values; must be empty.
        forced: Per tensor, the prepared model with rounding on against the reference, every layer
            reading the reference's codes.
        free: The same with every layer reading the prepared model's own tensors.
    """

    images: int = 0
    tensors: int = 0
    unequal: list[str] = field(default_factory=list)
    forced: dict[str, CodeDifference] = field(default_factory=dict)
    free: dict[str, CodeDifference] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f'{self.images} images, {self.tensors} tensors',
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


def rounded_execution(
    model: nn.Module, graph: Int8Graph, traced: Captured | None = None
) -> RoundedExecution:
    """The prepared float ``model`` with the rounding of ``graph``, which was lowered from it.

    Args:
        model: The prepared float detector.
        graph: The integer graph.
        traced: The captured ``model``, where the caller has it already.
    """
    traced = traced or capture(model)
    return RoundedExecution(traced.module, graph, cannot_be_negative(model.data_preprocessor))


def rounded_detector(model: nn.Module, graph: Int8Graph) -> nn.Module:
    """``model`` as a detector that predicts from its own rounded execution; in place."""
    traced = capture(model)
    execution = rounded_execution(model, graph, traced)
    captured = captured_layers(graph, traced.called)
    detector = to_int8(model, graph, traced.head, captured, 'reference')
    detector.int8_backend = execution
    return detector


@torch.no_grad()
def verify(model: nn.Module, graph: Int8Graph, batches: Iterable[Tensor]) -> Verification:
    """Compare three executions of the same integers.

    Args:
        model: The prepared float detector with the checkpoint that the graph was made from.
        graph: The integer graph.
        batches: Preprocessed images, float32 ``(N, C, H, W)``.
    """
    reference = build_backend('reference', graph, model)
    simulated = build_backend('simulated', graph, model)
    execution = rounded_execution(model, graph)
    result = Verification()
    for images in batches:
        codes, values = reference.codes(images), simulated.codes(images)
        result.images += 1
        result.tensors = len(codes)
        result.unequal += [name for name in codes if not torch.equal(codes[name], values[name])]
        _add(result.forced, compare_with_graph(execution, codes, images, forced=True))
        _add(result.free, compare_with_graph(execution, codes, images, forced=False))
    return result
