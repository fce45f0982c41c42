"""A test config that costs little to copy, as heads do for every image."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from .suppression import nms


class Settings(dict):
    """A dict with attributes, as mmengine's ``ConfigDict``, without its costs."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __deepcopy__(self, memo: Any) -> Settings:
        return Settings({k: dict(v) if isinstance(v, dict) else v for k, v in self.items()})


def fast_settings(config: Mapping[str, Any], sliced: bool) -> Settings:
    """``config`` with a faster ``nms`` in place of mmcv's.

    Args:
        config: A head's ``test_cfg``.
        sliced: Whether the head keeps the first ``max_per_img`` boxes alone, so that suppression
            may end there.
    """
    settings = Settings(config)
    own = settings.get('nms')
    if isinstance(own, Mapping) and own.get('type', 'nms') == 'nms':
        most = settings.get('max_per_img', -1)
        ends = {'max_num': most} if sliced and isinstance(most, int) and most > 0 else {}
        settings['nms'] = {**ends, **own, 'type': nms}
    return settings


class CurrentSettings:
    """:func:`fast_settings` of a config that may be changed, made anew when it was."""

    def __init__(self, sliced: bool) -> None:
        self._sliced = sliced
        self._made: tuple[Any, Settings] | None = None

    def of(self, config: Mapping[str, Any]) -> Settings:
        """Those of ``config`` as it is now."""
        made = self._made
        if made is None or made[0] != config:
            made = self._made = copy.deepcopy(config), fast_settings(config, self._sliced)
        return made[1]


def least_logit(score: float) -> float:
    """A logit below all whose sigmoid exceeds ``score``: float32 rounding of it may move the last
    bits, so a relative 1e-6 is left."""
    if not score > 0:
        return -math.inf
    score = score * (1 - 1e-6)
    return math.inf if score >= 1 else math.log(score / (1 - score)) - 1e-6
