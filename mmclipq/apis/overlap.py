"""Work on several items at once, with results in the items' order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar('Item')
Result = TypeVar('Result')


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``map(function, items)`` by so many threads, which share the processor's threads of torch.

    At most twice as many items as workers are read ahead, so memory does not grow with their
    number. What ``function`` raises is raised in its place; items that have not begun by then, or
    when the iterator is closed, are dropped, and those that have are waited for.

    Args:
        function: Called by several threads at once.
        items: Read by the caller's thread.
        workers: Number of threads; with 1 nothing is read ahead.
    """
    if workers == 1:
        yield from map(function, items)
        return
    share = max(1, torch.get_num_threads() // workers)
    pool = ThreadPoolExecutor(workers, 'infer', torch.set_num_threads, (share,))
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """As many as the processor has cores for this process: one image a core is faster than one
    image on all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
