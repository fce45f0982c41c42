"""What a clipped layer does beside its own product: ranges, observation, clipping, swapping."""

from __future__ import annotations

import math
from typing import Any, cast

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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ClipQError(f"{name}: found {value!r}, wanted 'auto' or a power of two such as 8")
    return fp.range_exponent(value, name)


def limit(x: Tensor, exponent: int | None, rounded: bool) -> Tensor:
    """``x`` clipped to the range of ``exponent``, on its grid if ``rounded``; ``x`` if None."""
    if exponent is None:
        return x
    return fp.quantize(x, exponent) if rounded else fp.clip(x, exponent)


def needed(x: Tensor, exponent: int | None, rounded: bool) -> int | None:
    """``exponent`` if limiting ``x`` to it could change a value, else None.

    On a CPU one reading pass costs less than the copies and masks of a clip that changes nothing,
    which is the usual case for weights. On a GPU it would cost a synchronization.
    """
    if exponent is None or rounded or x.device.type != 'cpu' or not x.numel():
        return exponent
    bound = math.ldexp(1.0, exponent)
    low, high = torch.aminmax(x)
    return None if -bound <= float(low) and float(high) <= bound else exponent


def limit_backward(grad: Tensor, x: Tensor, exponent: int | None) -> Tensor:
    """Gradient before :func:`limit`: ``grad`` where ``|x| <= 2**exponent``, 0 elsewhere."""
    if exponent is None:
        return grad
    bound = math.ldexp(1.0, exponent)
    if x.dtype != torch.float32:
        return grad.masked_fill(x.abs() > bound, 0)
    # hardtanh_backward is one vectorised pass but excludes its bounds: widen them by one unit.
    bound = math.ldexp(1.0 + torch.finfo(torch.float32).eps, exponent)
    return torch.ops.aten.hardtanh_backward(grad, x, -bound, bound)


class ClipMixin(nn.Module):
    """Mechanics shared by the clipped convolutions and :class:`ClipLinear`.

    A layer class lists this mixin before its ``torch.nn`` base and implements ``forward`` with
    one autograd function that recomputes the clipped input in its backward pass, so that clipping
    costs no activation memory. The ranges are plain attributes, not part of ``state_dict()``: a
    stock checkpoint loads strictly and the keys stay the stock ones.

    Args:
        input_range: Half width of the input range, a power of two, or ``'auto'``.
        weight_range: The same for the weights.
        round: Also round both to the fixed-point grid, straight through.
        *args, **kwargs: Those of the ``torch.nn`` base.

    Attributes:
        input_exponent (int | None): Range of the inputs; None until an ``'auto'`` range is found,
            which means not clipped.
        weight_exponent (int | None): Range of the weights; None as above.
        rounded (bool): Whether training rounds both to the grid, straight through.
        observer (OctaveHistogram | None): Collects the inputs while an ``'auto'`` range is sought.
    """

    weight: Tensor
    input_exponent: int | None
    weight_exponent: int | None
    rounded: bool
    observer: OctaveHistogram | None
    _stock_class: type[nn.Module] | None = None

    def __init__(
        self,
        *args: Any,
        input_range: float | str = AUTO,
        weight_range: float | str = AUTO,
        round: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.set_clip(input_range, weight_range, round)

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
        adopted = cast(ClipMixin, layer)
        adopted._stock_class = stock_class
        adopted.set_clip(**clip)

    def release(self) -> None:
        """Undo :meth:`adopt`.

        Raises:
            ClipQError: if the layer was built as a clipped layer, so there is no other class.
        """
        if self._stock_class is None:
            raise ClipQError(
                f'{type(self).__name__} was built from a config, found no stock class to return '
                'to; build the model without it'
            )
        stock_class = self._stock_class
        for name in ('input_exponent', 'weight_exponent', 'rounded', 'observer', '_stock_class'):
            self.__dict__.pop(name)
        layer: nn.Module = self
        layer.__class__ = stock_class

    def find_weight_range(self, name: str = 'weight') -> None:
        """Set an open weight range to the power of two that holds the current weights.

        Weights that are all zero, as zero-initialised layers have, leave it open: the smallest
        range would keep them at zero for ever.

        Raises:
            ClipQError: if the weights hold NaN or infinity.
        """
        if self.weight_exponent is None:
            weight = self.product_weight().detach()
            fp.check_finite(weight, name)
            largest = float(weight.abs().max())
            if largest > 0:
                self.weight_exponent = fp.holding_exponent(largest)

    def product_weight(self) -> Tensor:
        """The weights that enter the product; a layer that changes them first says so here."""
        return self.weight

    def _observe(self, x: Tensor) -> None:
        if self.observer is not None:
            self.observer.update(x.detach())

    def autocast(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias in the autocast dtype where autocast is on.

        Custom functions are not autocast. Limits are powers of two, so casting before the clip
        gives what casting after it would; with ``round`` the values are rounded twice.
        """
        weight, bias = self.product_weight(), cast('Tensor | None', self.bias)
        if not torch.is_autocast_enabled(x.device.type):
            return x, weight, bias
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

    def extra_repr(self) -> str:
        def show(exponent: int | None) -> str:
            return AUTO if exponent is None else f'±{math.ldexp(1.0, exponent):g}'

        rounded = ', round=True' if self.rounded else ''
        return (
            f'{super().extra_repr()}, input={show(self.input_exponent)}, '
            f'weight={show(self.weight_exponent)}{rounded}'
        )
