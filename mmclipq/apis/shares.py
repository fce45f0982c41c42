"""Work of a tool that a launcher has started several times, shared out by batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

Item = TypeVar('Item')


def place() -> tuple[int, int]:
    """Number of this process and how many ``torchrun`` has started; 0 and 1 without it."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def local_number() -> int:
    """Number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get('LOCAL_RANK', 0))


def share(items: Sequence[Item], batch_size: int, rank: int, processes: int) -> list[Item]:
    """The items of process ``rank``: every so many batches one, each as it would be in one process.

    An image's padding depends on the others of its batch, so batches stay what they are. Only the
    last share can end in an incomplete batch.
    """
    batches = [items[first : first + batch_size] for first in range(0, len(items), batch_size)]
    return [item for batch in batches[rank::processes] for item in batch]


def totals(counts: Sequence[int], processes: int) -> list[int]:
    """Sums of ``counts`` over all processes; waits for them."""
    if processes == 1:
        return list(counts)
    if not distributed.is_initialized():
        # The longest share may take hours more than the shortest.
        distributed.init_process_group('gloo', timeout=timedelta(days=1))
    sums = torch.tensor(counts, dtype=torch.int64)
    distributed.all_reduce(sums)
    distributed.destroy_process_group()
    return [int(value) for value in sums]
