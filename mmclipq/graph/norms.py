"""Nodes that normalize codes: an affine map per channel, and exact statistics."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Node


@dataclass(frozen=True)
class Affine(Node):
    """``v = float32(x - offset) * multiplier[c]``; ``v += bias[c]``; activation; as codes.

    Batch norms that follow no product. Channels are the second axis of ``(N, C, H, W)``, else the
    last. The multiplier holds the step of ``x``.
    """

    x: str
    multiplier: str
    bias: str
    activation: str = 'identity'
    slope: float = 0.0


@dataclass(frozen=True)
class Normalize(Node):
    """What group and layer normalization share: exact statistics of codes, then an affine map.

    Of ``n`` codes ``q = x - offset`` the sums ``s`` of ``q`` and ``t`` of ``q**2`` are exact
    integers. Each operation rounded to float64::

        mean = s / n
        var = max(t / n - mean * mean, 0)
        g = weight[c] * (1 / sqrt(var * step**2 + eps))
        m, b = float32(g * step), float32(bias[c] - (mean * step) * g)

    and then in float32 ``v = q * m``; ``v += b``; activation; codes.

    Attributes:
        weight, bias: Keys of float32 ``(channels,)``.
        eps: Added to the variance.
    """

    x: str
    weight: str
    bias: str
    eps: float = 1e-5
    activation: str = 'identity'
    slope: float = 0.0


@dataclass(frozen=True)
class GroupNorm(Normalize):
    """Statistics of each image ``(N, C, ...)`` and each of ``groups`` runs of channels."""

    groups: int = 1


@dataclass(frozen=True)
class LayerNorm(Normalize):
    """Statistics over the channels of each pixel of ``(N, C, H, W)``, else over the last axis."""
