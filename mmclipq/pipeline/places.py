"""Places of a dense head's maps, and priors of those places alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Places = Tensor | None
"""Numbers of a level's places, row times width plus column, int64, ascending; None for all."""

Sizes = tuple[tuple[int, int], ...]
"""Height and width of each level."""

_SHAPES = 16
"""Sets of map sizes whose priors are kept."""


@dataclass(frozen=True)
class Chosen:
    """Which places of each level a head is shown.

    Attributes:
        sizes: Height and width of the level's whole map.
        places: The places.
    """

    sizes: Sizes
    places: tuple[Places, ...]


_CHOSEN: ContextVar[Chosen | None] = ContextVar('places', default=None)


@contextmanager
def showing(chosen: Chosen) -> Iterator[None]:
    """Inside, :class:`ChosenPriors` gives this thread the priors of chosen places."""
    token = _CHOSEN.set(chosen)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def gathered(feature_map: Tensor, places: Places) -> Tensor:
    """A map ``(C, H, W)`` to its chosen places, ``(1, C, 1, n)``; to ``(1, C, H, W)`` for all."""
    if places is None:
        return feature_map[None]
    if feature_map.stride(0) == 1:  # channels last
        rows = feature_map.permute(1, 2, 0).flatten(0, 1)
        return rows.index_select(0, places).t()[None, :, None]
    return feature_map.flatten(1).index_select(1, places)[None, :, None]


class ChosenPriors:
    """A head's prior generator, which gives priors of chosen places where some are chosen.

    Everything else that it is asked for is the stock generator's. Priors of whole maps are made
    once for each set of sizes.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock
        self._made: dict[Any, list[Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ('stock', '_made'):  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self.stock, name)

    def grid_priors(self, featmap_sizes: Sequence[Any], *args: Any, **kwargs: Any) -> list[Tensor]:
        """As the stock generator's, one tensor for each level."""
        chosen = _CHOSEN.get()
        if chosen is None:
            return self.stock.grid_priors(featmap_sizes, *args, **kwargs)
        made = self.whole(chosen.sizes, *args, **kwargs)
        return [
            priors if places is None else _of_places(priors, height * width, places)
            for priors, (height, width), places in zip(
                made, chosen.sizes, chosen.places, strict=True
            )
        ]

    def whole(self, sizes: Sizes, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Priors of all places, made once; not to be changed."""
        key = sizes, args, tuple(sorted(kwargs.items()))
        made = self._made.get(key)
        if made is None:
            while len(self._made) >= _SHAPES:
                self._made.pop(next(iter(self._made)), None)
            made = self._made[key] = self.stock.grid_priors(list(sizes), *args, **kwargs)
        return made


def _of_places(priors: Tensor, count: int, places: Tensor) -> Tensor:
    """Rows of those of ``count`` places, which have equally many each."""
    width = priors.shape[1]
    return priors.reshape(count, -1).index_select(0, places).reshape(-1, width)
