"""What a clipped layer does beside its own product: ranges, observation, clipping, swapping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import fixed_point as fp
from ..calibration.observer import OctaveHistogram
from ..errors import ClipQError

AUTO = 'auto'


def parse_range(value: float | str, name: str) -> int | None:
    """Exponent of a range given as a number; None for ``'auto'``.

    Raises:
        ClipQError: if ``value`` is neither ``'auto'`` nor a power of two within the limits.
    """
    if isinstance(value, str):
        if value != AUTO:
            raise ClipQError(f"{name}: found {value!r}, wanted 'auto' or a power of two such as 8")
        return None
    return fp.range_exponent(value, name)


def limit(x: Tensor, exponent: int | None, rounded: bool) -> Tensor:
    """``x`` clipped to the range of ``exponent``, on its grid if ``rounded``; ``x`` if None."""
    if exponent is None:
        return x
    return fp.quantize(x, exponent) if rounded else fp.clip(x, exponent)


def limit_backward(grad: Tensor, x: Tensor, exponent: int | None) -> Tensor:
    """Gradient before :func:`limit`: ``grad`` where ``|x| <= 2**exponent``, 0 elsewhere."""
    if exponent is None:
        return grad
    bound = math.ldexp(1.0, exponent)
    if x.dtype != torch.float32:
        return torch.ops.aten.clamp_backward(grad, x, -bound, bound)
    # hardtanh_backward is one vectorised pass but excludes its bounds: widen them by one unit.
    bound = math.ldexp(1.0 + torch.finfo(torch.float32).eps, exponent)
    return torch.ops.aten.hardtanh_backward(grad, x, -bound, bound)


class ClipMixin:
    """Mechanics shared by :class:`ClipConv` and :class:`ClipLinear`.

    A layer class lists this mixin before its ``torch.nn`` base and implements ``forward`` with
    one autograd function that recomputes the clipped input in its backward pass, so that clipping
    costs no activation memory. The ranges are plain attributes, not part of ``state_dict()``: a
    stock checkpoint loads strictly and the keys stay the stock ones.

    Attributes:
        input_exponent (int | None): Range of the inputs; None until an ``'auto'`` range is found,
            which means not clipped.
        weight_exponent (int | None): Range of the weights; None as above.
        rounded (bool): Whether training rounds both to the grid, straight through.
        observer (OctaveHistogram | None): Collects the inputs while an ``'auto'`` range is sought.
    """

    input_exponent: int | None
    weight_exponent: int | None
    rounded: bool
    observer: OctaveHistogram | None
    _stock_class: type[nn.Module] | None

    def set_clip(
        self,
        input_range: float | str = AUTO,
        weight_range: float | str = AUTO,
        round: bool = False,
    ) -> None:
        """Set the ranges, each a power of two or ``'auto'``, and the rounding."""
        self.input_exponent = parse_range(input_range, 'input_range')
        self.weight_exponent = parse_range(weight_range, 'weight_range')
        self.rounded = round
        self.observer = None

    @classmethod
    def adopt(cls, layer: nn.Module, **clip: Any) -> None:
        """Turn ``layer`` into this class in place: same object, parameters, hooks and keys."""
        stock_class = type(layer)
        layer.__class__ = cls
        layer._stock_class = stock_class
        layer.set_clip(**clip)

    def release(self) -> None:
        """Undo :meth:`adopt`.

        Raises:
            ClipQError: if the layer was built as a clipped layer, so there is no other class.
        """
        if getattr(self, '_stock_class', None) is None:
            raise ClipQError(
                f'{type(self).__name__} was built from a config, found no stock class to return '
                'to; build the model without it'
            )
        stock_class = self._stock_class
        for name in ('input_exponent', 'weight_exponent', 'rounded', 'observer', '_stock_class'):
            self.__dict__.pop(name)
        self.__class__ = stock_class

    def find_weight_range(self, name: str = 'weight') -> None:
        """Set an open weight range to the power of two that holds the current weights.

        Raises:
            ClipQError: if the weights hold NaN or infinity.
        """
        if self.weight_exponent is None:
            weight = self.weight.detach()
            fp.check_finite(weight, name)
            self.weight_exponent = fp.holding_exponent(float(weight.abs().max()))

    def _observe(self, x: Tensor) -> None:
        if self.observer is not None:
            self.observer.update(x.detach())

    def clip_repr(self) -> str:
        """The ranges in words, for ``extra_repr``."""

        def show(exponent: int | None) -> str:
            return AUTO if exponent is None else f'±{math.ldexp(1.0, exponent):g}'

        return f'input={show(self.input_exponent)}, weight={show(self.weight_exponent)}' + (
            ', round=True' if self.rounded else ''
        )
