"""Counts what a config asks for while a detector is built from it, before memory is taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from ..graph.limits import Limits

_FACTORIES = frozenset(
    getattr(torch, name)
    for name in (
        'empty', 'zeros', 'ones', 'full', 'rand', 'randn', 'randint', 'randperm', 'arange',
        'linspace', 'logspace', 'eye',
    )
)  # fmt: skip
_GROWING = frozenset({
    Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.repeat,
    Tensor.tile, torch.tile, Tensor.repeat_interleave, torch.repeat_interleave,
})  # fmt: skip


class _Counting(TorchFunctionMode):
    """Makes each tensor without memory first, and adds up the sizes."""

    def __init__(self, limits: Limits, who: str) -> None:
        super().__init__()
        self.limits, self.who, self.bytes = limits, who, 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = None
        if func in _FACTORIES:
            found = func(*args, **{**kwargs, 'device': 'meta'})
        elif func in _GROWING and not any(isinstance(a, Tensor) for a in args[1:]):
            x = args[0]
            found = func(torch.empty(x.shape, dtype=x.dtype, device='meta'), *args[1:], **kwargs)
        if found is not None:
            self.bytes += found.numel() * found.element_size()
            self.limits.check('model', self.bytes, self.who)
        return func(*args, **kwargs)


@contextmanager
def counted(limits: Limits, who: str) -> Iterator[None]:
    """Inside, this thread makes no more modules and tensors than the limits allow.

    Raises:
        LimitError: ``who`` begins its sentence.
    """
    thread, count = threading.get_ident(), 0

    def count_module(*_: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            limits.check('modules', count, who)

    handle = register_module_module_registration_hook(count_module)
    try:
        with _Counting(limits, who):
            yield
    finally:
        handle.remove()
