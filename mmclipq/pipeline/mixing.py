"""Classes put before those of modules, and taken away again."""

from __future__ import annotations

import functools

from torch import nn


@functools.cache
def _mixed(mixin: type, kind: type, prefix: str) -> type:
    name = f'{prefix}{kind.__name__}'
    return type(name, (mixin, kind), {'__doc__': mixin.__doc__, 'mixed_in': mixin})


def mix_in(module: nn.Module, mixin: type, prefix: str) -> type:
    """Put ``mixin`` before the class of ``module``; returns that class.

    Args:
        module: In place.
        mixin: The class.
        prefix: Begins the name of the new class.
    """
    kind: type = type(module)
    module.__class__ = _mixed(mixin, kind, prefix)
    return kind


def unmix(module: nn.Module, *mixins: type) -> None:
    """Take away the one of ``mixins`` that :func:`mix_in` put there last, if it did."""
    if vars(type(module)).get('mixed_in') in mixins:
        module.__class__ = type(module).__mro__[2]
