"""How a module is called: what is fixed in its arguments, and what each call brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .ir import GraphError, Ref, iter_refs, map_refs

_FIXED = (str, bool, type(None), torch.dtype)


def split_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The form of a call, and the tensors and numbers in it in order.

    The form is a tuple of the arguments and a dict of the keyword arguments with a :class:`Ref`
    for each tensor and number. Texts, flags and None belong to the form: another one is another
    way of calling. Two calls run the same graph if their forms are equal.

    Raises:
        GraphError: if an argument is, or holds, anything but tensors and plain data.
    """
    leaves: list[Any] = []

    def form(value: Any) -> Any:
        if isinstance(value, Tensor) or type(value) in (int, float):
            leaves.append(value)
            return Ref(input_name(len(leaves) - 1))
        if isinstance(value, _FIXED):
            return value
        if isinstance(value, list):
            return [form(item) for item in value]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: form(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not hasattr(value, '_fields'):
            return tuple(form(item) for item in value)
        raise GraphError(f'found an argument of type {type(value).__name__}, wanted tensors')

    return (form(tuple(args)), form(dict(kwargs))), leaves


def is_form(value: Any) -> bool:
    """Whether ``value`` is a form of a call, with each reference once (a file sorts its keys)."""
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple)):
        return False
    keys = isinstance(value[1], dict) and all(isinstance(key, str) for key in value[1])
    names = [ref.name for ref in iter_refs(value)]
    return keys and sorted(names) == sorted(input_name(index) for index in range(len(names)))


def input_name(index: int) -> str:
    """Name of the ``index``-th tensor or number of a call."""
    return f'input{index}'


def join_call(form: Any, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inverse of :func:`split_call`."""
    named = {input_name(index): leaf for index, leaf in enumerate(leaves)}
    return map_refs(form, lambda ref: named[ref.name])
