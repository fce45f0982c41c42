"""A fair choice of the batches of a stream, within bounded memory, for a second look."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

HELD, HELD_BYTES = 16, 1 << 26
"""Batches that are held at most, and about how much memory their images may take."""


class Reservoir:
    """Holds some batches of a stream of unknown length, each with the same probability.

    The same stream leaves the same batches. Of large images fewer are held, at least one.

    Attributes:
        held: Images ``(N, C, H, W)`` and data samples, in the order of the stream.
    """

    def __init__(self) -> None:
        self._random = random.Random(0)
        self._seen = 0
        self._size = HELD
        self._kept: list[tuple[int, tuple[Tensor, Any]]] = []

    def add(self, images: Tensor, samples: Any) -> None:
        """Show it the next batch."""
        size = images.numel() * images.element_size()
        self._size = max(1, min(self._size, HELD_BYTES // max(1, size)))
        item = self._seen, (images, samples)
        place = self._random.randrange(self._seen + 1)
        self._seen += 1
        if len(self._kept) < self._size:
            self._kept.append(item)
        elif place < self._size:
            self._kept[place] = item
        while len(self._kept) > self._size:  # a larger image than those before
            self._kept.pop(self._random.randrange(len(self._kept)))

    @property
    def held(self) -> list[tuple[Tensor, Any]]:
        return [batch for _, batch in sorted(self._kept, key=lambda item: item[0])]
