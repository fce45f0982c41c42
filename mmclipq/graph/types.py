"""The types of an ``Int8Graph``'s tensors, and what all its nodes share."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from .. import fixed_point as fp
from ..errors import ClipQError

ACTIVATIONS = (
    'identity', 'relu', 'relu6', 'leaky_relu', 'silu', 'sigmoid', 'tanh', 'hardswish',
    'hardsigmoid', 'gelu', 'gelu_tanh', 'elu', 'mish', 'exp',
)  # fmt: skip
"""Functions after sums, defined in float32 by :mod:`mmclipq.ops.activations`."""
OFFSETS = (0, 8, 16, 32, 64)
"""Codes that may stand for zero in a uint8 tensor: powers of two, so that the range below zero is a
power-of-two share of the whole."""


class GraphError(ClipQError):
    """A graph, or a node of it, that cannot be what it claims to be."""


@dataclass(frozen=True)
class TensorType:
    """What a tensor holds: codes with the range exponent, or float32 if ``exponent`` is None.

    A code ``x`` stands for ``(x - offset) * 2**step_exponent``; int8 codes have no offset.
    """

    exponent: int | None = None
    signed: bool = True
    offset: int = 0

    @property
    def is_codes(self) -> bool:
        return self.exponent is not None

    @property
    def range_exponent(self) -> int:
        """Exponent of the range of codes."""
        if self.exponent is None:
            raise GraphError('found float32 values, wanted codes, which alone have a range')
        return self.exponent

    @property
    def step_exponent(self) -> int:
        """Exponent of the step between two codes."""
        if self.exponent is None:
            raise GraphError('found float32 values, wanted codes, which alone have a step')
        return fp.step_exponent(self.exponent, self.signed)

    def __str__(self) -> str:
        if not self.is_codes:
            return 'float32'
        offset = f' offset {self.offset}' if self.offset else ''
        return f'{"int8" if self.signed else "uint8"} 2^{self.exponent}{offset}'


FLOAT = TensorType()


def dtype_of(kind: TensorType) -> torch.dtype:
    """Dtype of the codes, or float32."""
    return fp.code_dtype(kind.signed) if kind.is_codes else torch.float32


@dataclass(frozen=True)
class Ref:
    """A reference to the tensor ``name`` inside the arguments of a :class:`FloatCall`."""

    name: str


@dataclass(frozen=True)
class Node:
    """Base of all nodes. ``name`` is also the name of the tensor that the node defines."""

    name: str
    type: TensorType

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the node reads, in order."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name in ('x', 'other'))
