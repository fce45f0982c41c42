"""Sequences of steps that run in C++ on memory that is planned beforehand."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ClipQError
from . import steps

ALIGNMENT = 64  # bytes, one cache line
ERROR_SIZE = 512
"""Bytes for the text of an error."""


def memory_format(axes: int) -> torch.memory_format:
    """How tensors of so many axes lie in memory: channels last if they are images."""
    return torch.channels_last if axes == 4 else torch.contiguous_format


class Slot:
    """A tensor of a program.

    Args:
        shape: ``(N, C, H, W)``, which lies with channels last, or any other number of axes with the
            last as channels.
        dtype: Of its items.
        external: Number among the buffers that each run brings, or None for working memory.
        part_of: The slot whose channels from ``channel`` on it is.
        stride: Items between the first channels of two pixels or rows; by default no gap.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        external: int | None = None,
        part_of: Slot | None = None,
        channel: int = 0,
        stride: int | None = None,
    ) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype
        self.channels = self.shape[1 if len(shape) == 4 else -1]
        self.owner: Slot = self if part_of is None else part_of.owner
        self.external: int | None = self.owner.external if part_of is not None else external
        self.stride: int = (stride or self.channels) if part_of is None else part_of.stride
        self.offset: int = 0 if part_of is None else part_of.offset + channel * dtype.itemsize
        self.start = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its items, with the gaps that are its own."""
        stride = self.stride if self.owner is self else self.channels
        return self.shape.numel() // max(self.channels, 1) * stride * self.dtype.itemsize

    @property
    def rows(self) -> steps.Rows:
        """How the slot lies, as steps want to know it."""
        return steps.Rows(self.shape.numel() // self.channels, self.channels, self.stride)

    def read(self, memory: Tensor) -> Tensor:
        """A copy of the tensor that lies in working memory."""
        size = self.dtype.itemsize
        items = memory[: len(memory) // size * size].view(self.dtype)
        strides: tuple[int, ...]
        if len(self.shape) == 4:
            _, _, h, w = self.shape
            strides = (h * w * self.stride, 1, w * self.stride, self.stride)
        else:
            strides = (*(n * self.stride for n in _dense_strides(self.shape[:-1])), 1)
        first = items.storage_offset() + (self.owner.start + self.offset) // size
        return items.as_strided(self.shape, strides, first).clone()


def _dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(shape, device='meta').stride()


class Program(ABC):
    """Steps at fixed shapes.

    Args:
        externals: How many buffers each run brings.
    """

    def __init__(self, externals: int) -> None:
        self._externals = externals
        self._steps: list[ctypes.Structure] = []
        self._places: list[tuple[steps.Place, Slot]] = []
        self._used: dict[Slot, list[int]] = {}
        self._kept: list[Any] = []
        self._table: Any = None
        self.size = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(
        self,
        step: ctypes.Structure,
        slots: Mapping[str, Slot] | Iterable[tuple[steps.Place, Slot]],
        keep: Any = None,
    ) -> None:
        """Append a step.

        Args:
            step: Without its places.
            slots: Slot of each place, by the name of the field or beside the place itself.
            keep: What the step points to.
        """
        if isinstance(slots, Mapping):
            slots = [(getattr(step, name), slot) for name, slot in slots.items()]
        for place, slot in slots:
            self._places.append((place, slot))
            self._used.setdefault(slot.owner, []).append(len(self._steps))
        self._steps.append(step)
        self._kept.append(keep)

    def finish(self) -> Program:
        """Give every slot its memory: slots share bytes whose steps do not overlap."""
        # The largest first, each at the lowest place that is free while it lives.
        inner = [slot for slot in self._used if slot.external is None and slot.nbytes]
        placed: list[tuple[int, int, int, int]] = []  # first and last step, start and end
        for slot in sorted(inner, key=lambda slot: -slot.nbytes):
            first, last = min(self._used[slot]), max(self._used[slot])
            size = math.ceil(slot.nbytes / ALIGNMENT) * ALIGNMENT
            start = 0
            others = [p for p in placed if p[0] <= last and first <= p[1]]
            for _, _, other_start, other_end in sorted(others, key=lambda p: p[2]):
                if start + size <= other_start:
                    break
                start = max(start, other_end)
            placed.append((first, last, start, start + size))
            slot.start = start
        self.size = max((end for *_, end in placed), default=0)
        for place, slot in self._places:
            place.buffer = 0 if slot.external is None else 1 + slot.external
            place.offset = slot.owner.start + slot.offset
        self._table = (steps.Step * len(self._steps))(*(
            steps.Step(steps.number_of(step), ctypes.addressof(step)) for step in self._steps
        ))  # fmt: skip
        return self

    def run(
        self, memory: Tensor, externals: Sequence[Tensor], first: int = 0, last: int | None = None
    ) -> None:
        """Run the steps from ``first`` to before ``last``.

        Raises:
            ClipQError: if a step fails.
        """
        last = len(self._steps) if last is None else last
        buffers = (ctypes.c_void_p * (1 + self._externals))(
            memory.data_ptr(), *(tensor.data_ptr() for tensor in externals)
        )
        error = ctypes.create_string_buffer(ERROR_SIZE)
        start = ctypes.byref(self._table, first * ctypes.sizeof(steps.Step))
        if not self._call(start, last - first, buffers, error):
            raise ClipQError(f'compiled operators: {error.value.decode()}')

    @abstractmethod
    def _call(self, start: Any, count: int, buffers: Any, error: Any) -> int:
        """Run ``count`` steps; returns 0 if one fails, with a text of ERROR_SIZE in ``error``."""
