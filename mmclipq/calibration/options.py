"""What a calibration is told: how ranges are chosen, and what is corrected afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ClipQError

METHODS = ('mse', 'max', 'percentile', 'kl', 'output')
"""Squared error, every value seen, a share of them, Kullback-Leibler divergence, and error of the
outputs of the layers that read a tensor."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of a calibration; a config's section ``clipq.int8`` has the same names.

    Attributes:
        method: One of :data:`METHODS`.
        percentile: Share of the values, in percent, that a range holds with ``'percentile'``.
        offsets: Whether tensors that reach a little below zero may be uint8 with an offset.
        bias_correction: Whether biases take back what rounding moves the mean of each channel by.

    Raises:
        ClipQError: naming an option that makes no sense.
    """

    method: str = 'mse'
    percentile: float = 99.99
    offsets: bool = True
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ClipQError(f'found calibration method {self.method!r}, wanted one of {METHODS}')
        share = self.percentile
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 100:
            raise ClipQError(f'percentile: found {share!r}, wanted one above 0, at most 100')
        for name in ('offsets', 'bias_correction'):
            if not isinstance(getattr(self, name), bool):
                raise ClipQError(f'{name}: found {getattr(self, name)!r}, wanted True or False')

    @classmethod
    def of(cls, section: Mapping[str, Any] | None, **changes: Any) -> CalibrationOptions:
        """Those of a section ``clipq.int8``, in which ``changes`` that are not None win."""
        given = {**(section or {}), **{k: v for k, v in changes.items() if v is not None}}
        return cls(**{name: given[name] for name in OPTION_NAMES if name in given})


OPTION_NAMES = tuple(field.name for field in fields(CalibrationOptions))
