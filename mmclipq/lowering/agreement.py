"""Whether a trace computes what its module does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3


def same_results(found: Any, wanted: Any) -> bool:
    """Whether two trees of results have one structure, and values that differ by rounding alone."""
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or found.shape != wanted.shape:
            return False
        if not wanted.is_floating_point():
            return torch.equal(found, wanted)
        scale = float(wanted.abs().max()) if wanted.numel() else 0.0
        return torch.allclose(found, wanted, _TOLERANCE, _TOLERANCE * scale, equal_nan=True)
    if isinstance(wanted, (tuple, list)):
        return (
            isinstance(found, (tuple, list))
            and len(found) == len(wanted)
            and all(map(same_results, found, wanted))
        )
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(same_results(found[key], value) for key, value in wanted.items())
        )
    return type(found) is type(wanted) and found == wanted
