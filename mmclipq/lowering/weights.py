"""The weight codes of a traced part's layers, made once for however many graphs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .. import fixed_point as fp
from ..calibration.range_search import weight_exponents
from ..layers import ClipConvTranspose
from .plan import Unit


class WeightCodes:
    """Codes and exponents of each layer's weights, output channels first as in a convolution.

    Args:
        energies: Mean square of each input channel by layer path, which makes the squared error of
            the weights that of the layer's output; layers that are not named count all the same.
    """

    def __init__(self, energies: Mapping[str, Tensor] | None = None) -> None:
        self._energies = energies or {}
        self._found: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, unit: Unit) -> tuple[Tensor, Tensor]:
        """int8 codes ``(K, C / groups, ...)`` and int32 exponents ``(K,)`` of a product.

        Raises:
            ClipQError: if the weights hold NaN or infinity.
        """
        path = unit.target
        if path not in self._found:
            layer, name = unit.clipped, f'{path}.weight'
            weight = layer.product_weight().detach().cpu()
            if isinstance(layer, ClipConvTranspose):
                weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            importance = self._importance(unit, weight)
            exponents = weight_exponents(weight, layer.weight_exponent, name, importance)
            self._found[path] = fp.encode(weight, exponents, axis=0), exponents
        return self._found[path]

    def _importance(self, unit: Unit, weight: Tensor) -> Tensor | None:
        energy = self._energies.get(unit.target)
        if energy is None:
            return None
        groups = getattr(unit.layer, 'groups', 1)
        rows = energy.float().view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        # Channels that are always zero leave the choice to the weights themselves.
        rows = rows.clamp(min=max(float(rows.mean()) * 1e-6, 1e-30))
        return rows.view(*rows.shape, *[1] * (weight.dim() - 2))

    def values(self, unit: Unit) -> Tensor:
        """What the codes stand for, float32, in the shape of the layer's own weights."""
        codes, exponents = self.of(unit)
        weight = fp.decode(codes, exponents, axis=0)
        if isinstance(unit.layer, ClipConvTranspose):
            weight = weight.unflatten(0, (unit.layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight
