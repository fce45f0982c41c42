"""Executions that measure what rounding does to the outputs of layers: by range, and on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import fixed_point as fp
from ..calibration.observer import OctaveHistogram
from ..calibration.range_search import CodeRange, candidates, relative_error
from ..graph.ir import TensorType
from .execution import Execution, unclipped
from .nodes import input_of
from .norms import fold_norm
from .plan import PRODUCTS, Plan, Unit
from .ranges import RangeGroup, bounded
from .weights import WeightCodes

OCTAVES = (1, 0, -1, -2)
"""Exponents that are measured, beside the one with the least squared error of the tensor."""
_OTHERS, _NEAR = 2, 4.0
"""How many ranges of other offsets are measured, and how much larger their error may be."""


def near_ranges(group: RangeGroup, histograms: Sequence[OctaveHistogram]) -> list[CodeRange]:
    """Ranges of a group to be measured, the one with the least squared error first."""
    ranges = candidates(histograms, group.signed, group.upper, group.offsets)
    errors = {range_: relative_error(histograms, range_) for range_ in ranges}
    best = min(ranges, key=errors.__getitem__)
    found = [best]
    for octave in OCTAVES:
        exponent = best.exponent + octave
        if exponent <= (fp.EXPONENT_MAX if group.upper is None else group.upper):
            found.append(best._replace(exponent=max(exponent, fp.EXPONENT_MIN)))
    kinds: dict[tuple[bool, int], CodeRange] = {}
    for range_ in sorted(ranges, key=errors.__getitem__):
        if errors[range_] <= _NEAR * errors[best]:
            kinds.setdefault(range_[1:], range_)
    found += [range_ for kind, range_ in kinds.items() if kind != best[1:]][:_OTHERS]
    return list(dict.fromkeys(found))


def rows_of(x: Tensor, unit: Unit) -> Tensor:
    """``(channels, values)`` of what a product reads or gives."""
    axis = -1 if unit.kind == 'linear' else x.dim() - 3
    return x.movedim(axis, 0).flatten(1)


class _ProductExecution(Execution):
    """Runs a part in float and shows each product with its input and output."""

    def __init__(self, module: fx.GraphModule, plan: Plan) -> None:
        super().__init__(module)
        self._products = {unit.start: unit for unit in plan.units if unit.kind in PRODUCTS}

    def run_node(self, n: fx.Node) -> Any:
        unit = self._products.get(n)
        if unit is None:
            return super().run_node(n)
        x = input_of(self, n)
        result = super().run_node(n)
        if x.numel():
            self.look(unit, x, result)
        return result

    def look(self, unit: Unit, x: Tensor, result: Tensor) -> None:
        raise NotImplementedError


class Energies(_ProductExecution):
    """Measures the mean square of each input channel of each product."""

    def __init__(self, module: fx.GraphModule, plan: Plan) -> None:
        super().__init__(module, plan)
        self._energies: dict[str, list[Tensor]] = {}

    def look(self, unit: Unit, x: Tensor, result: Tensor) -> None:
        self._energies.setdefault(unit.target, []).append(
            rows_of(x, unit).square().mean(1).double().cpu()
        )

    @property
    def energies(self) -> dict[str, Tensor]:
        """Mean square of each input channel by layer path, float64 ``(C,)``."""
        return {path: torch.stack(found).mean(0) for path, found in self._energies.items()}


class OutputErrors(Energies):
    """Measures the error that rounding a tensor, in several ranges, makes in layers that read it.

    Weights stay in float. The error of a layer is the squared one behind its batch norm, as a share
    of the variance there; layers that read the same tensor are summed.

    Args:
        module: The traced part.
        plan: Its units.
        tried: Tensors with the ranges to try.
    """

    def __init__(
        self, module: fx.GraphModule, plan: Plan, tried: Mapping[RangeGroup, Sequence[CodeRange]]
    ) -> None:
        super().__init__(module, plan)
        self.tried = tried
        self._group = {unit: group for group in tried for unit in group.units}
        self._errors: dict[RangeGroup, dict[str, Tensor]] = {group: {} for group in tried}
        self._power: dict[str, Tensor] = {}

    def look(self, unit: Unit, x: Tensor, result: Tensor) -> None:
        super().look(unit, x, result)
        group = self._group.get(unit.operands[0])
        if group is None:
            return
        layer, name = unit.clipped, unit.start.name
        scale = fold_norm(layer, unit.norm)[0].float().to(x.device)[:, None]
        wanted = rows_of(result, unit) * scale
        power = (wanted - wanted.mean(1, keepdim=True)).square().sum().double().cpu()
        self._power[name] = self._power.get(name, 0) + power
        errors = []
        for range_ in self.tried[group]:
            kind = bounded(TensorType(*range_), layer.input_exponent)
            rounded = fp.quantize(x, kind.range_exponent, kind.signed, offset=kind.offset)
            found = rows_of(self.call_module(unit.target, (rounded,), {}), unit)
            errors.append(found.mul_(scale).sub_(wanted).square_().sum().double().cpu())
        sums = self._errors[group]
        sums[name] = sums.get(name, 0) + torch.stack(errors)

    def best(self, group: RangeGroup, tensor_errors: Sequence[float]) -> CodeRange | None:
        """The range with the least error; None if no layer has read the tensor.

        Args:
            group: The tensors.
            tensor_errors: Relative squared error of the tensors themselves in each range, which
                counts beside that of the layers; zeros where layers alone read them.
        """
        sums = self._errors[group]
        if not sums:
            return None
        total = torch.tensor(tensor_errors, dtype=torch.float64)
        for name, errors in sums.items():
            total = total + errors / max(float(self._power[name]), 1e-300)
        return self.tried[group][int(total.argmin())]


class MeanErrors(_ProductExecution):
    """Measures by how much rounding of input and weights moves the mean of each output channel.

    Args:
        module: The traced part.
        plan: Its units.
        types: Of its tensors with codes.
        weights: Its weight codes.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        plan: Plan,
        types: Mapping[Unit, TensorType],
        weights: WeightCodes,
    ) -> None:
        super().__init__(module, plan)
        self._types, self._weights = types, weights
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def look(self, unit: Unit, x: Tensor, result: Tensor) -> None:
        layer, name = unit.clipped, unit.start.name
        kind = bounded(self._types[unit.operands[0]], layer.input_exponent)
        rounded = fp.quantize(x, kind.range_exponent, kind.signed, offset=kind.offset)
        with unclipped(layer, self._weights.values(unit).to(x)):
            found = self.call_module(unit.target, (rounded,), {})
        error = rows_of(result, unit) - rows_of(found, unit)
        self._sums[name] = self._sums.get(name, 0) + error.sum(1, dtype=torch.float64).cpu()
        self._counts[name] = self._counts.get(name, 0) + error.shape[1]

    @property
    def corrections(self) -> dict[str, Tensor]:
        """What each product lacks on average, before its norm, float64 ``(K,)`` by fx name."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}
