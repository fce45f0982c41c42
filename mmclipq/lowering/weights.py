"""The weight codes of a traced part's layers, made once for however many graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..calibration.compensation import Block, compensated_codes
from ..calibration.range_search import weight_exponents
from ..calibration.rate import rated_codes
from ..layers import ClipConvTranspose
from .norms import fold_norm
from .plan import Unit


class WeightCodes:
    """Codes and exponents of each layer's weights, output channels first as in a convolution.

    Args:
        energies: Mean square of each input channel by layer path, which makes the squared error of
            the weights that of the layer's output; layers that are not named count all the same.
        rate: What a bit of a code costs, as a share of the energy of its layer's output; zero for
            the codes with the least error.
        blocks: How errors of a layer's weights make up for each other, by its path; None for those
            where each counts alone.
        powers: Mean square of each output of a layer by its path, before bias and norm; without
            them it is what inputs that are independent of each other would make.
    """

    def __init__(
        self,
        energies: Mapping[str, Tensor] | None = None,
        rate: float = 0.0,
        blocks: Callable[[str], Sequence[Block] | None] = lambda path: None,
        powers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._energies = energies or {}
        self.rate = rate
        self._blocks = blocks
        self._powers = powers or {}
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
            if self.rate:
                fp.check_finite(weight, name)
                found = self._rated(unit, weight, importance)
            else:
                exponents = weight_exponents(weight, layer.weight_exponent, name, importance)
                found = fp.encode(weight, exponents, axis=0), exponents
            self._found[path] = found
        return self._found[path]

    def _rated(
        self, unit: Unit, weight: Tensor, importance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Codes and exponents with the least error plus rate times bits.

        An error counts as the share of the energy of the layer's output behind its norm.
        """
        share = fold_norm(unit.clipped, unit.norm)[0].float().square()
        wide = share.view(-1, *[1] * (weight.dim() - 1))
        counts = wide * (torch.ones(()) if importance is None else importance)
        if (power := self._powers.get(unit.target)) is not None:
            energy = float((share * power).sum(dtype=torch.float64))
        else:
            energy = float((weight.square() * counts).sum(dtype=torch.float64))
        energy = max(energy, 1e-30)
        upper = unit.clipped.weight_exponent
        if (blocks := self._blocks(unit.target)) is not None:
            return compensated_codes(weight, blocks, share / energy, self.rate, upper)
        return rated_codes(weight, counts / energy, self.rate, upper)

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
