"""Nodes that multiply codes with weight codes, and their epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import fixed_point as fp
from .types import Node


@dataclass(frozen=True)
class Product(Node):
    """What a convolution and a linear layer share: int32 sums and the float32 epilogue.

    ``acc`` is the sum of ``(x - offset) * w``; ``v = float32(acc) * multiplier[c]``;
    ``v += bias[c]``; the residual's values are added before
    the activation or after it; the result is rounded to codes, or is ``v`` for a float32 type.

    Attributes:
        x: Codes read.
        weight: Key of the int8 weight codes among the graph's constants.
        exponents: Key of the int32 range exponents of the weights ``(channels,)``. Execution needs
            only the multiplier, which contains them; exports and reports need them alone.
        multiplier: Key of the float32 multipliers ``(channels,)``.
        bias: Key of the float32 biases ``(channels,)``.
        activation: One of :data:`ACTIVATIONS`.
        slope: Factor of negative values in ``leaky_relu``, or ``elu``'s alpha.
        residual: Codes added, or None.
        residual_last: Whether the residual is added after the activation.
    """

    x: str
    weight: str
    exponents: str
    multiplier: str
    bias: str
    activation: str = 'identity'
    slope: float = 0.0
    residual: str | None = None
    residual_last: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(frozen=True)
class Conv(Product):
    """2-D convolution; padding with the code that stands for zero.

    Weight codes are ``(K, C / groups, R, S)``.

    Attributes:
        covering: Whether the padding depends on the image instead of being ``padding``: see
            :func:`mmclipq.fixed_point.covering_padding`.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    covering: bool = False

    def pads(self, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after the rows, and the columns, of an image of ``sizes``."""
        if self.covering:
            return fp.covering_padding(sizes, kernel, self.stride, self.dilation)
        return [(side, side) for side in self.padding]


@dataclass(frozen=True)
class ConvTranspose(Product):
    """2-D transposed convolution; weight codes ``(K, C / groups, R, S)`` as a convolution's.

    Attributes:
        output_padding: Rows and columns of the result beyond the last pixel's reach.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Linear(Product):
    """Matrix product over the last axis. Weight codes ``(K, C)``."""
