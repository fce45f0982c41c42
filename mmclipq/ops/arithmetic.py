"""The arithmetic of codes in plain PyTorch, on any device: what kernels must equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import fixed_point as fp
from ..graph import ir


def activate(v: Tensor, activation: str, slope: float) -> Tensor:
    """Activation of float32 ``v`` as every backend computes it."""
    if activation == 'relu':
        return v.clamp_(min=0)
    if activation == 'relu6':
        return v.clamp_(0, 6)
    if activation == 'leaky_relu':
        return torch.where(v > 0, v, v * slope)
    return v


def to_codes(v: Tensor, kind: ir.TensorType) -> Tensor:
    """Codes of float32 ``v``: scaled exactly, rounded half to even, saturated."""
    scaled = v * math.ldexp(1.0, -kind.step_exponent)
    return scaled.round_().clamp_(*fp.code_range(kind.signed)).to(fp.code_dtype(kind.signed))


def depthwise_sum(x: Tensor, weight: Tensor, node: ir.Conv) -> Tensor:
    """Depthwise convolution as one product per tap, because PyTorch's for float64 is slow."""
    (top, left), (down, right), (far_y, far_x) = node.padding, node.stride, node.dilation
    x = F.pad(x, (left, left, top, top))
    rows, columns = weight.shape[2:]
    height = (x.shape[2] - far_y * (rows - 1) - 1) // down + 1
    width = (x.shape[3] - far_x * (columns - 1) - 1) // right + 1
    total = x.new_zeros(x.shape[0], x.shape[1], height, width)
    for r in range(rows):
        for s in range(columns):
            y, z = r * far_y, s * far_x
            taps = x[:, :, y : y + down * height : down, z : z + right * width : right]
            total.addcmul_(taps, weight[:, 0, r, s].view(1, -1, 1, 1))
    return total


def conv_sum(x: Tensor, weight: Tensor, node: ir.Conv) -> Tensor:
    """Convolution of float64 integers, exact below ``2**53``."""
    if node.groups == x.shape[1] == weight.shape[0]:
        return depthwise_sum(x, weight, node)
    return F.conv2d(x, weight, None, node.stride, node.padding, node.dilation, node.groups)


def per_channel(values: Tensor, node: ir.Product) -> Tensor:
    """Per-channel ``values`` shaped to broadcast over the result of ``node``."""
    return values.view(-1, 1, 1) if isinstance(node, ir.Conv) else values


def scaled(acc: Tensor, multiplier: Tensor, bias: Tensor, node: ir.Product) -> Tensor:
    """Float32 values of the sums ``acc``, by one multiplication and one addition per channel."""
    return acc.float().mul_(per_channel(multiplier, node)).add_(per_channel(bias, node))


def finish(v: Tensor, node: ir.Product, residual: Tensor | None = None) -> Tensor:
    """Result of ``node``, codes or float32 values by its type.

    Args:
        v: Float32 values of the sums.
        node: The layer.
        residual: Float32 values added before the activation or after it.
    """
    if residual is not None and not node.residual_last:
        v = v + residual
    v = activate(v, node.activation, node.slope)
    if residual is not None and node.residual_last:
        v = v + residual
    return to_codes(v, node.type) if node.type.is_codes else v
