"""Codes of weights that cost least in error plus a rate times their bits.

Bits are those of an entropy coder that knows each output channel's magnitude, as
:mod:`mmclipq.graph.codes` does: minus the logarithm of a discrete distribution, half Laplace, half
normal, of the channel's own root mean square.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import fixed_point as fp

_SHIFTS = (1, 0, -1, -2, -3, -4, -5, -6, -7)
"""Octaves that a channel's range is smaller than the one that holds it."""
_FLOOR = 2.0**-14  # least probability of a code
_PASSES = 2
_HALF = 128
_CLASSES = 46


def code_bits(rms: Tensor) -> Tensor:
    """Bits of the codes -128 to 127, float32 ``(K, 256)``, for channels of ``rms`` codes.

    Args:
        rms: Root mean square of the codes, float32 ``(K,)``.
    """
    rms = rms.clamp(min=0.05)[:, None]
    edges = torch.arange(-_HALF, _HALF + 1).float() - 0.5
    normal = torch.special.ndtr(edges / rms).diff(dim=1)
    scaled = edges * math.sqrt(2) / rms
    laplace = torch.where(scaled < 0, scaled.exp() / 2, 1 - (-scaled).exp() / 2).diff(dim=1)
    shares = (normal + laplace) / 2 + _FLOOR
    return -(shares / shares.sum(1, keepdim=True)).log2()


@functools.cache
def _table() -> Tensor:
    """:func:`code_bits` in quarter octaves from 1/16 code on, flat."""
    return code_bits(2.0 ** (torch.arange(_CLASSES) / 4 - 4)).flatten()


def _bits(codes: Tensor, like: Tensor) -> Tensor:
    """Bits of ``codes`` ``(K, n)`` in channels that hold ``like``."""
    rms = like.square().mean(1).sqrt()
    classes = (4 * rms.clamp(min=1e-9).log2() + 16).round_().clamp_(0, _CLASSES - 1)
    places = (codes + _HALF).add_((256 * classes)[:, None])
    return _table().take(places.long())


def _chosen(scaled: Tensor, error: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Codes ``(K, n)`` in float32, and what each channel costs ``(K,)``.

    Args:
        scaled: Weights in steps, ``(K, n)``.
        error: What a squared difference of one step counts, ``(K, n)``.
        rate: What a bit counts.
    """
    nearest = scaled.round().clamp_(-_HALF, _HALF - 1)
    lower = nearest - nearest.sign()
    codes = nearest
    for _ in range(_PASSES):
        like = codes
        least = torch.full_like(scaled, torch.inf)
        for tried in (nearest, lower, torch.zeros_like(nearest)):
            cost = (tried - scaled).square_().mul_(error)
            cost += rate * _bits(tried, like)
            better = cost < least
            codes = torch.where(better, tried, codes)
            least = torch.where(better, cost, least)
    return codes, least.sum(1)


def chosen_codes(scaled: Tensor, error: Tensor, bits: Tensor, most: Tensor) -> Tensor:
    """Of the nearest code, its neighbour towards zero and zero the one of least cost, float32.

    Args:
        scaled: Weights in steps, any shape.
        error: What a squared difference of one step counts, of that shape.
        bits: What the codes -128 to 127 cost, of that shape and ``(256,)`` more.
        most: Largest magnitude of a code, of that shape.
    """
    nearest = scaled.round().clamp(-most, most)
    tried = torch.stack([nearest, nearest - nearest.sign(), torch.zeros_like(nearest)], -1)
    cost = (tried - scaled[..., None]).square_().mul_(error[..., None])
    cost += bits.gather(-1, (tried + _HALF).long())
    return tried.gather(-1, cost.argmin(-1, keepdim=True))[..., 0]


def rated_codes(
    weight: Tensor, importance: Tensor, rate: float, upper: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and exponents of a layer's weights with the least error plus ``rate`` times bits.

    Of each weight the nearest code, its neighbour towards zero and zero are tried, for each output
    channel steps of nine octaves.

    Args:
        weight: Finite float32 ``(K, ...)``, output channels first.
        importance: What a squared error of a weight counts, broadcast over the weights.
        rate: What a bit counts, above zero.
        upper: Clip exponent of the layer: larger weights saturate there. A step may be coarser than
            that range's, but no code stands for more than the range holds.

    Returns:
        int8 codes of the shape of ``weight``, int32 exponents ``(K,)``.
    """
    rows = weight.detach().float().flatten(1)
    counts = importance.expand_as(weight).flatten(1).float()
    if upper is not None:
        rows = fp.clip(rows, upper)
    largest = rows.abs().amax(1).tolist()
    top = torch.tensor([fp.holding_exponent(value) for value in largest])
    best = top.clone()
    codes = torch.zeros_like(rows)
    least = rows.new_full((len(rows),), torch.inf)
    for shift in _SHIFTS:
        exponents = (top - shift).clamp(fp.EXPONENT_MIN, fp.EXPONENT_MAX)
        step = fp.power_of_two(fp.step_exponent(exponents))[:, None]
        found, cost = _chosen(rows / step, counts * step.square(), rate)
        better = cost < least
        codes = torch.where(better[:, None], found, codes)
        best, least = torch.where(better, exponents, best), torch.where(better, cost, least)
    return codes.to(torch.int8).view_as(weight), best.to(torch.int32)
