"""Batch norm in evaluation mode as a scale and a shift."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def fold_norm(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 ``(channels,)``, that follow the product in evaluation mode.

    The batch norm stays out of the weights: it only scales and shifts the int32 sums.
    """
    channels = (
        layer.out_features if isinstance(layer, nn.Linear) else cast(nn.Conv2d, layer).out_channels
    )
    bias = cast('Tensor | None', layer.bias)
    shift = torch.zeros(channels, dtype=torch.float64)
    if bias is not None:
        shift = bias.detach().double().cpu()
    if norm is None:
        return torch.ones(channels, dtype=torch.float64), shift
    scale, added = norm_factors(norm)
    return scale, shift * scale + added


def norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 ``(channels,)``, of a batch norm in evaluation mode."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double().cpu() + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach().double().cpu()
    shift = -norm.running_mean.double().cpu() * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double().cpu()
    return scale, shift
