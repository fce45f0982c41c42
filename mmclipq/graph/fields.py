"""Checks that each field of a node has the type that its class states, and a sane size.

Graphs come from files that anybody may have written. What passes here can be computed with: no
later step meets a string for a number, a pair of three, a negative stride or an endless one.
"""

from __future__ import annotations

import functools
import math
import types
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from .types import GraphError, Node, TensorType

_SIDE = 1 << 15
KERNEL = 1 << 8
"""Largest side of a kernel: some backends take each of its places in turn."""
LIMITS: dict[str, tuple[float, float]] = {
    'kernel': (1, KERNEL),
    'stride': (1, _SIDE),
    'dilation': (1, _SIDE),
    'step': (1, _SIDE),
    'padding': (0, _SIDE),
    'output_padding': (0, _SIDE),
    'start': (0, _SIDE),
    'groups': (1, 1 << 20),
    'output_size': (1, 1 << 8),
    'sampling_ratio': (0, 1 << 6),
    'scales': (2.0**-20, 1.0),
    'scale': (2.0**-10, 2.0**10),
    'finest_scale': (2.0**-10, 2.0**20),
    'slope': (-(2.0**20), 2.0**20),
    'eps': (1e-12, 2.0**20),
}
"""Smallest and largest number of each field that holds numbers."""
MAX_NAME = 1 << 10
"""Characters of a name."""
MAX_ITEMS = 1 << 12
"""Items of a tuple, such as the inputs of a concatenation."""


@functools.cache
def _hints(kind: type[Node]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple) or len(value) > MAX_ITEMS:
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is str:
        return isinstance(value, str) and 0 < len(value) <= MAX_NAME
    return isinstance(value, hint)


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, tuple) else (value,)
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def check_fields(node: Node) -> None:
    """Return if every field of ``node`` is of its type and within :data:`LIMITS`.

    Raises:
        GraphError: naming node and field.
    """
    if not _fits(node.name, str):
        raise GraphError(f'found a node called {str(node.name)[:50]!r}, wanted a short name')
    kind = node.type
    whole = isinstance(kind, TensorType) and _fits(kind.exponent, int | None)
    if not whole or not isinstance(kind.signed, bool) or not _fits(kind.offset, int):
        raise GraphError(f'{node.name}: found the type {kind!r}, wanted exponent, sign and offset')
    own: Any = type(node)  # of a dataclass, which mypy takes for unhashable
    for name, hint in _hints(own).items():
        value = getattr(node, name)
        empty = name == 'reason' and value == ''
        if not empty and not _fits(value, hint):
            raise GraphError(
                f'{node.name}: found {name}={_short(value)}, wanted {_written(hint)}; the file is '
                'damaged or of another version'
            )
        if name not in LIMITS or not isinstance(value, (int, float, tuple)):
            continue
        low, high = LIMITS[name]
        if not all(math.isfinite(number) and low <= number <= high for number in _numbers(value)):
            raise GraphError(
                f'{node.name}: found {name}={_short(value)}, wanted numbers from {low:g} to '
                f'{high:g}'
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _written(hint: Any) -> str:
    return str(getattr(hint, '__name__', hint) if isinstance(hint, type) else hint)
