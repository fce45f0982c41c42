"""Milliseconds of single nodes of integer graphs, and of single float layers, in predictions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest import mock

from torch import nn

from ..backends import Backend
from ..graph import ir
from ..ops.program import Program

Clock = Callable[[], float]


def _medians(predict: Callable[[], Any], spent: Counter[Any], rounds: int) -> dict[Any, float]:
    """Median milliseconds of what ``predict`` adds to ``spent``, after a round that does not
    count."""
    seen = []
    for _ in range(rounds + 1):
        spent.clear()
        predict()
        seen.append(Counter(spent))
    return {key: 1000 * median(found[key] for found in seen[1:]) for key in seen[-1]}


def node_times(
    predict: Callable[[], Any],
    backends: Sequence[Backend],
    rounds: int = 5,
    clock: Clock = time.perf_counter,
) -> dict[tuple[int, str], float]:
    """Median milliseconds of each node in one prediction, by its graph's number and its name.

    Nodes run one by one for this; what a backend does between them is left out, so that the sum is
    less than a prediction takes.

    Args:
        predict: Predicts once.
        backends: Execute the graphs.
        rounds: How many predictions count.
        clock: Seconds; on a GPU when all that was launched has ended.
    """
    spent: Counter[Any] = Counter()
    stock, passed, since = Program.run, [], 0.0

    def program(*args: Any) -> None:
        start = clock()
        stock(*args)
        passed.append(clock() - start)

    def watched(number: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def observe(node: ir.Node, result: Any) -> None:
            nonlocal since
            # Compiled nodes run in a program, the others in Python, one after the other.
            spent.update({(number, node.name): passed.pop() if passed else clock() - since})
            since = clock()

        def observed(*inputs: Any) -> Any:
            nonlocal since
            since = clock()
            return run(*inputs, observe=observe)

        return observed

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Program, 'run', program))
        for number, backend in enumerate(backends):
            patch = mock.patch.object(backend, 'run', watched(number, backend.run))
            stack.enter_context(patch)
        return _medians(predict, spent, rounds)


def layer_times(
    predict: Callable[[], Any],
    layers: Mapping[str, nn.Module],
    rounds: int = 5,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each of a model's ``layers`` in one prediction, by name.

    Args:
        predict: Predicts once.
        layers: Modules, each with its own calls alone.
        rounds, clock: As for :func:`node_times`.
    """
    spent: Counter[Any] = Counter()
    started: dict[str, float] = {}

    def start(name: str) -> Callable[..., None]:
        return lambda *_: started.update({name: clock()})

    def stop(name: str) -> Callable[..., None]:
        return lambda *_: spent.update({name: clock() - started[name]})

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(start(name)).remove)
            stack.callback(layer.register_forward_hook(stop(name)).remove)
        return _medians(predict, spent, rounds)
