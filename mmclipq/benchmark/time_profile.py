"""Where the time of an int8 detector's prediction goes, from the image tensor to boxes."""

from __future__ import annotations

import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from .timing import digits

DENSE, BOXES = 'integer graph of backbone, neck and dense head', 'integer graphs of regions'
NMS, DECODING = 'non-maximum suppression', 'decoding and selection of boxes'
REST = 'the rest, Python'


@contextmanager
def _timed(
    stack: list[str], spent: dict[str, float], name: str, clock: Callable[[], float]
) -> Iterator[None]:
    """Add the time inside to ``name``, and take it off from what it interrupts."""
    start = clock()
    stack.append(name)
    try:
        yield
    finally:
        stack.pop()
        passed = clock() - start
        spent[name] += passed
        if stack:
            spent[stack[-1]] -= passed


@torch.no_grad()
def profile_prediction(
    detector: nn.Module,
    predict: Callable[[], Any],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each step of ``predict``, an :class:`Int8Detector`'s prediction.

    Steps that a detector does not have are left out. A step's time is without that of others
    inside it, so the steps add up to the whole.

    Args:
        detector: The detector.
        predict: Predicts once.
        rounds: How many count, after two that do not.
        clock: Seconds; on a GPU when all that was launched has ended.
    """
    stack: list[str] = []
    spent: defaultdict[str, float] = defaultdict(float)

    def watch(owner: Any, attribute: str, name: str) -> Any:
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def outer(*args, **kwargs):
            with _timed(stack, spent, name, clock):
                return inner(*args, **kwargs)

        return mock.patch.object(owner, attribute, outer)

    with ExitStack() as patches:
        patches.enter_context(watch(detector.int8_backend, 'run', DENSE))
        for backend in vars(detector)['int8_boxes']:
            patches.enter_context(watch(backend, 'run', BOXES))
        for module in detector.modules():
            if hasattr(module, 'predict_by_feat'):
                patches.enter_context(watch(module, 'predict_by_feat', DECODING))
        for name, loaded in list(sys.modules.items()):
            # Modules hold the function by its name, each one its own.
            if name.startswith('mmdet.') and 'batched_nms' in vars(loaded):
                patches.enter_context(watch(loaded, 'batched_nms', NMS))
        seen: list[defaultdict[str, float]] = []
        for _ in range(rounds + 2):
            spent.clear()
            with _timed(stack, spent, REST, clock):
                predict()
            seen.append(spent.copy())
    seen = seen[2:]  # two rounds do not count
    names = [name for name in (DENSE, BOXES, NMS, DECODING, REST) if name in seen[0]]
    return {name: 1000 * sorted(s[name] for s in seen)[len(seen) // 2] for name in names}


def profile_table(steps: dict[str, float], title: str) -> str:
    """Markdown table of :func:`profile_prediction`."""
    whole = sum(steps.values())
    lines = [f'| {title} | ms | share |', '|---|---|---|']
    lines += [f'| {name} | {digits(ms)} | {ms / whole:.0%} |' for name, ms in steps.items()]
    return '\n'.join(lines)
