"""The values that stand for tensors while tracing, and what may be asked of them."""

from __future__ import annotations

import dis
import operator
from collections.abc import Iterator
from typing import Any, Protocol, cast

from torch import Tensor, fx
from torch.fx.proxy import Attribute

_COMPARISONS = {
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
}  # fmt: skip


class _Knowing(Protocol):
    """What is asked of the tracer: it knows example values."""

    def value(self, proxy: fx.Proxy) -> Any:
        """Example value of a proxy."""

    def length(self, obj: fx.Proxy) -> int:
        """Number of items."""


def _tracer(proxy: fx.Proxy) -> _Knowing:
    return cast(_Knowing, proxy.tracer)


class Value(fx.Proxy):
    """A tensor, a number or a size of the traced computation, whose example value is known."""

    def __getattr__(self, name: str) -> Any:
        return _read_attribute(self, name)

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __len__(self) -> int:
        return _tracer(self).length(self)


class ValueAttribute(Attribute):
    """An attribute of a traced value, such as its shape, or one of its methods."""

    def __getattr__(self, name: str) -> Any:
        return _read_attribute(self, name)

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __len__(self) -> int:
        return _tracer(self).length(self)


def _read_attribute(proxy: fx.Proxy, name: str) -> Any:
    if name.startswith('_'):
        raise AttributeError(name)
    value = _tracer(proxy).value(proxy)
    if isinstance(value, Tensor):
        if name in ('ndim', 'dtype'):
            return getattr(value, name)
        if name == 'requires_grad':
            return False
        if name == 'shape' and proxy.node.op == 'get_attr':
            return tuple(value.shape)
    return ValueAttribute(proxy, name)


def known_result(method: str, proxy: fx.Proxy, args: tuple[Any, ...]) -> Any:
    """What a method says of structure alone; None for any other."""
    value = _tracer(proxy).value(proxy)
    if not isinstance(value, Tensor):
        return None
    if method in ('dim', 'ndimension', 'is_floating_point'):
        return getattr(value, method)()
    if method in ('size', 'numel') and proxy.node.op == 'get_attr':
        result = getattr(value, method)(*args)
        return result if isinstance(result, int) else tuple(result)
    return None


def _is_count(node: Any) -> bool:
    """Whether the node is a number of elements, or a size along one axis."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == 'call_method':
        return node.target == 'numel' or node.target == 'size' and len(node.args) == 2
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return False
    shape = node.args[0]
    return isinstance(shape, fx.Node) and (
        shape.target is getattr
        and shape.args[1] == 'shape'
        or shape.op == 'call_method'
        and shape.target == 'size'
        and len(shape.args) == 1
    )


def asks_for_emptiness(node: fx.Node) -> bool:
    """Whether a condition asks if there is anything at all, as in ``x.numel() > 0``.

    Graphs are for calls with something to compute; on nothing their steps compute nothing.
    """
    if node.target in _COMPARISONS:
        return _is_count(node.args[0]) and bool(node.args[1] == 0)
    return _is_count(node)


def is_asserted(frame: Any) -> bool:
    """Whether the condition that ``frame`` evaluates belongs to an ``assert``, so that it holds."""
    steps = [step for step in dis.get_instructions(frame.f_code) if step.opname != 'CACHE']
    index = next((i for i, step in enumerate(steps) if step.offset == frame.f_lasti), None)
    if index is None:
        return False
    while index < len(steps) and steps[index].opname in ('UNARY_NOT', 'TO_BOOL'):
        index += 1
    if index + 1 >= len(steps) or 'POP_JUMP' not in steps[index].opname:
        return False
    target = next(step for step in steps if step.offset == steps[index].argval)
    return any(_raises_assertion(step) for step in (steps[index + 1], target))


def _raises_assertion(step: dis.Instruction) -> bool:
    return step.opname == 'LOAD_ASSERTION_ERROR' or step.argval is AssertionError
