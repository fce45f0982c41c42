"""An execution that measures how the inputs of layers belong together: their second moments."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..calibration.compensation import Block, column_blocks
from ..layers import ClipConv
from .measured import Energies, rows_of
from .plan import Plan, Unit

PLACES = 4096
"""Places of an image that are looked at, about, spread evenly over it."""


def columns_of(unit: Unit, x: Tensor) -> Tensor | None:
    """What the weights of a product multiply, ``(G, n, places)`` by group; None where that is none.

    Each output of a transposed convolution has a part of the kernel of its own, so its weights are
    those of no columns.
    """
    layer = unit.layer
    if unit.kind == 'linear':
        rows = x.flatten(0, -2)
        return rows[:: max(1, len(rows) // PLACES)].T[None]
    if not isinstance(layer, ClipConv):
        return None
    x, padding = layer._padded(x)
    stride = layer.stride
    places = x.shape[-2] * x.shape[-1] // (stride[0] * stride[1])
    further = max(1, round((places / PLACES) ** 0.5))
    stride = (stride[0] * further, stride[1] * further)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, padding, stride)
    return columns.transpose(0, 1).flatten(1).unflatten(0, (layer.groups, -1))


class Moments(Energies):
    """Measures second moments of each product's columns, and energies of inputs and outputs."""

    def __init__(self, module: fx.GraphModule, plan: Plan) -> None:
        super().__init__(module, plan)
        self._sums: dict[str, list[Tensor]] = {}
        self._counts: dict[str, int] = {}
        self._blocks: dict[str, list[Block]] = {}
        self._powers: dict[str, list[Tensor]] = {}

    @property
    def powers(self) -> dict[str, Tensor]:
        """Mean square of each output of a product, its bias left out, by layer path, float64."""
        return {path: torch.stack(found).mean(0) for path, found in self._powers.items()}

    def look(self, unit: Unit, x: Tensor, result: Tensor) -> None:
        super().look(unit, x, result)
        outputs = rows_of(result, unit)
        bias = cast('Tensor | None', unit.clipped.bias)
        if bias is not None:
            outputs = outputs - bias[:, None]
        self._powers.setdefault(unit.target, []).append(outputs.square().mean(1).double().cpu())
        if (columns := columns_of(unit, x)) is None:
            return
        cut = [columns[:, part] for part in column_blocks(columns.shape[1])]
        found = [torch.bmm(part, part.transpose(1, 2)).cpu() for part in cut]
        if unit.target not in self._sums:
            self._sums[unit.target], self._counts[unit.target] = found, 0
        else:
            for total, part in zip(self._sums[unit.target], found, strict=True):
                total += part
        self._counts[unit.target] += columns.shape[2]

    def blocks(self, path: str) -> list[Block] | None:
        """How errors of a layer's weights make up for each other; None where they do not.

        Its moments are forgotten.
        """
        if path in self._sums:
            sums, count = self._sums.pop(path), self._counts.pop(path)
            parts = column_blocks(sum(total.shape[1] for total in sums))
            self._blocks[path] = [
                Block.of(total.double() / count, part)
                for total, part in zip(sums, parts, strict=True)
            ]
        return self._blocks.get(path)
