"""Int8 convolutions and linear layers on a GPU, bit for bit those of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...graph import ir
from .. import steps
from ..layer import TYPES, Layer
from .tiles import DEPTH

_MOST_OUTPUTS = 256  # of a tile; the weights of each tile are read whole


def stored_channels(channels: int) -> int:
    """Channels that a pixel has in memory for products to read it: copies move 16 bytes, or 4."""
    return 4 if channels <= 4 else math.ceil(channels / 16) * 16


class CudaProduct(Layer):
    """One convolution or linear layer with its weights packed for the kernels.

    Args:
        *args: Those of :class:`Layer`, tensors on the GPU.

    Attributes:
        grouped: Whether the simple kernel runs it, which reads pixels of any stride.
        channels: Of the input, as stored.
        depth: Bytes of weights for each output.
    """

    def __init__(self, node: ir.Product, weight: Tensor, *args: Any) -> None:
        super().__init__(node, weight, *args)
        self.grouped = self.groups > 1
        self._outside = self._correction = None
        if weight.dim() == 2:
            weight = weight[:, :, None, None]
        if self.grouped:
            self.channels, self.depth = weight.shape[1] * self.groups, 0
            self._weight = weight.permute(2, 3, 1, 0).contiguous()
            return
        self.channels = stored_channels(weight.shape[1])
        rows = F.pad(weight.permute(0, 2, 3, 1), (0, self.channels - weight.shape[1])).flatten(1)
        if offset := self.x_type.offset:
            code = torch.full((16,), offset, dtype=torch.uint8, device=weight.device)
            self._outside = code
            self._correction = rows.sum(1, dtype=torch.int32).mul_(-offset)
        self.depth = math.ceil(rows.shape[1] / DEPTH) * DEPTH
        outputs = math.ceil(self.outputs / _MOST_OUTPUTS) * _MOST_OUTPUTS
        padding = (0, self.depth - rows.shape[1], 0, outputs - self.outputs)
        self._weight = F.pad(rows, padding).contiguous()

    @property
    def few_channels(self) -> bool:
        """Whether the tile for at most 4 channels computes it."""
        return self.channels == 4

    def step(self, x: Sequence[int], result: Sequence[int]) -> steps.CudaProductStep:
        """The step for an input and a result of these shapes, without places, strides and tile."""
        images, (height, width), (rows, columns) = x[0], (1, 1), (1, 1)
        window = steps.Window.from_buffer_copy(self.window)
        if isinstance(self.node, ir.Conv):
            (height, width), (rows, columns) = x[2:], result[2:]
            before = [side for side, _ in self.node.pads(x[2:], self.kernel)]
            window.padding = steps.PAIR(*before)
        else:
            images = math.prod(x[:-1])
        step = steps.CudaProductStep(
            residual=steps.Place(-1, 0), sums=steps.Place(-1, 0), counters=steps.Place(-1, 0),
            weight=self._weight.data_ptr(), multiplier=self.multiplier.data_ptr(),
            bias=self.bias.data_ptr(), window=window, images=images, height=height,
            width=width, channels=self.channels, rows=rows, columns=columns, outputs=self.outputs,
            depth=self.depth, groups=self.groups, src_signed=self.x_type.signed,
            dst_kind=TYPES[self.dtype], activation=self.activation, tile=0, splits=1,
            alpha=self.alpha, residual_scale=self.residual_scale, scale=self.scale,
            src_offset=self.x_type.offset, dst_offset=self.node.type.offset,
        )  # fmt: skip
        if self._outside is not None and self._correction is not None:
            step.outside, step.correction = self._outside.data_ptr(), self._correction.data_ptr()
        if self.residual_type is not None:
            step.residual_signed = self.residual_type.signed
            step.residual_offset = self.residual_type.offset
            step.residual_order = 2 if self.node.residual_last else 1
        return step
