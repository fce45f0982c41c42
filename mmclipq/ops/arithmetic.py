"""The arithmetic of codes in plain PyTorch, on any device: what kernels must equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import fixed_point as fp
from ..graph import ir
from ..graph.shapes import pooled_sides
from .activations import activate


def to_codes(v: Tensor, kind: ir.TensorType) -> Tensor:
    """Codes of float32 ``v``: scaled exactly, rounded half to even, the offset added, saturated."""
    scaled = (v * math.ldexp(1.0, -kind.step_exponent)).round_().add_(kind.offset)
    return scaled.clamp_(*fp.code_range(kind.signed)).to(fp.code_dtype(kind.signed))


def result(v: Tensor, kind: ir.TensorType) -> Tensor:
    """``v`` itself for a float32 type, else its codes."""
    return to_codes(v, kind) if kind.is_codes else v


def depthwise_sum(x: Tensor, weight: Tensor, node: ir.Conv) -> Tensor:
    """Depthwise convolution as one product per tap, because PyTorch's for float64 is slow."""
    (down, right), (far_y, far_x) = node.stride, node.dilation
    x = padded(x, weight, node)
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
    x = padded(x, weight, node)
    return F.conv2d(x, weight, None, node.stride, 0, node.dilation, node.groups)


def padded(x: Tensor, weight: Tensor, node: ir.Conv, value: int = 0) -> Tensor:
    """Images ``(N, C, H, W)`` with the padding of ``node`` around them."""
    rows, columns = node.pads(x.shape[2:], weight.shape[2:])
    return F.pad(x, (*columns, *rows), value=value)


def conv_transpose_sum(x: Tensor, weight: Tensor, node: ir.ConvTranspose) -> Tensor:
    """Transposed convolution of float64 integers, exact below ``2**53``."""
    groups = node.groups
    # PyTorch wants (C, K / groups, R, S).
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    geometry = node.stride, node.padding, node.output_padding, groups, node.dilation
    return F.conv_transpose2d(x, weight, None, *geometry)


def per_channel(values: Tensor, node: ir.Product) -> Tensor:
    """Per-channel ``values`` shaped to broadcast over the result of ``node``."""
    return values if isinstance(node, ir.Linear) else values.view(-1, 1, 1)


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
    return result(v, node.type)


def pool_counts(node: ir.AvgPool, rows: int, columns: int) -> list[Tensor]:
    """How many pixels of each row, and of each column, of the pooled image count; float64.

    Args:
        node: The pooling.
        rows, columns: Size of the image.
    """
    counts = []
    sides = (rows, columns)
    for axis, (size, count) in enumerate(zip(sides, pooled_sides(node, sides), strict=True)):
        if node.kernel is None:
            counts.append(torch.tensor([float(size)], dtype=torch.float64))
            continue
        kernel, stride, padding = node.kernel[axis], node.stride[axis], node.padding[axis]
        first = torch.arange(count, dtype=torch.float64) * stride - padding
        low, high = (-padding, size + padding) if node.count_padding else (0, size)
        counts.append((first + kernel).clamp(max=high) - first.clamp(min=low))
    return counts


def pool_sum(x: Tensor, node: ir.AvgPool) -> Tensor:
    """Sums ``(N, C, rows, columns)`` of the windows of float64 integers ``(N, C, H, W)``, exact."""
    if node.kernel is None:
        return x.sum((2, 3), keepdim=True)
    rows, columns = (len(count) for count in pool_counts(node, *x.shape[2:]))
    (top, left), (down, right) = node.padding, node.stride
    bottom = max(0, (rows - 1) * down + node.kernel[0] - x.shape[2] - top)
    far = max(0, (columns - 1) * right + node.kernel[1] - x.shape[3] - left)
    x = F.pad(x, (left, far, top, bottom))
    total = x.new_zeros(*x.shape[:2], rows, columns)
    for r in range(node.kernel[0]):
        for s in range(node.kernel[1]):
            total += x[:, :, r : r + down * rows : down, s : s + right * columns : right]
    return total


def average(acc: Tensor, node: ir.AvgPool, rows: int, columns: int) -> Tensor:
    """Float32 averages, in steps, of the sums of an image of ``rows`` and ``columns``."""
    heights, widths = pool_counts(node, rows, columns)
    inverse = (1.0 / (heights[:, None] * widths)).float().to(acc.device)
    return acc.float() * inverse


def channel_shape(axes: int) -> tuple[int, ...]:
    """Shape in which values of one channel each broadcast over a tensor of so many axes."""
    return (-1, 1, 1) if axes == 4 else (-1,)


def norm_factors(
    x: Tensor, node: ir.Normalize, step: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Multiplier and bias in float32, shaped to broadcast over ``x``; see :class:`ir.Normalize`.

    Args:
        x: Codes less their offset, float64.
        node: Group or layer normalization.
        step: Of the codes.
        weight, bias: Float32 ``(channels,)``.
    """
    if isinstance(node, ir.GroupNorm):
        rows = x.reshape(x.shape[0], node.groups, -1)
        s, t = rows.sum(2), rows.square().sum(2)
        count, channels = rows.shape[2], x.shape[1]
        shape = (1, channels) + (1,) * (x.dim() - 2)
    else:
        axis = 1 if x.dim() == 4 else -1
        s, t = x.sum(axis, keepdim=True), x.square().sum(axis, keepdim=True)
        count, shape = x.shape[axis], channel_shape(x.dim())
    mean = s / count
    var = (t / count - mean * mean).clamp_(min=0)
    inverse = torch.sqrt(var * (step * step) + node.eps).reciprocal()
    if isinstance(node, ir.GroupNorm):
        each = channels // node.groups
        mean, inverse = (
            value.repeat_interleave(each, 1).reshape(x.shape[0], *shape[1:])
            for value in (mean, inverse)
        )
    g = weight.double().view(shape) * inverse
    return (g * step).float(), (bias.double().view(shape) - (mean * step) * g).float()
