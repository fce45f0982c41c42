"""RoIAlign in float32, operation by operation: what every backend computes.

The samples and weights are those of MMCV's ``RoIAlign``. Each line is one float32 operation per
value, none is fused with another, and sums run in this order::

    size = sqrt((x2 - x1) * (y2 - y1)) / finest_scale + 1e-6
    level = how many of 2, 4, 8, ... are at most size, at most the last level
    start, end = x1 * scale - offset, x2 * scale - offset      offset 0.5 if aligned, else 0
    bin = (end - start) / bins                                 side at least 1 if not aligned
    samples = sampling_ratio, or ceil(bin)                     along each axis
    position = (start + p * bin) + ((i + 0.5) * bin) / samples

A sample beyond the map by more than one pixel is 0. A position is limited to the map from 0 on;
``low`` is its whole part, ``l = position - low``, ``h = 1 - l``; at the last pixel ``high = low``
and ``l = 0``. With corners ``v1`` (low, low), ``v2`` (low, high), ``v3`` (high, low), ``v4``::

    sample = (hy * hx) * v1;  sample += (hy * lx) * v2;  sample += (ly * hx) * v3
    sample += (ly * lx) * v4
    total += sample                                            rows first, then columns
    average = total / (samples of y * samples of x)

A region without area has no samples and gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..graph.nodes import RoIAlign
from ..graph.types import GraphError

_CHUNK = 1 << 22
"""Values held at once for each of the four corners."""


_FARTHEST = 2.0**15
"""Pixels of the finest level from the first one to where a region may reach."""
_SAMPLES = 2.0**33
"""Pixels of the finest level in all regions of a call together: each may be a sample, and costs
time, whether it lies on the map or beyond."""


def check_regions(node: RoIAlign, rois: Tensor, levels: Sequence[Sequence[int]]) -> None:
    """Return if regions ``(K, 5)`` are of images of the batch, and not too large to average.

    Those on a GPU pass: looking at them would wait for it.

    Args:
        node: What reads them.
        rois: Float32.
        levels: Shapes of the levels.

    Raises:
        GraphError: naming the node.
    """
    if rois.is_cuda or not len(rois):
        return
    images, scale = levels[0][0], node.scales[0]
    first, last = rois[:, 0].min(), rois[:, 0].max()
    low, high = rois[:, 1:].aminmax()
    pixels = ((rois[:, 3:] - rois[:, 1:3]).clamp_(min=0) * scale).prod(1).sum()
    far = max(-low, high) * scale > _FARTHEST
    if not (first >= 0 and last < images) or far or pixels > _SAMPLES:
        raise GraphError(
            f'{node.name}: found {len(rois)} regions from {low:.4g} to {high:.4g} in images '
            f'{first:.4g} to {last:.4g}, wanted them in {images} images and smaller'
        )


def divided(x: Tensor, by: float) -> Tensor:
    """``x / by``, rounded once; by a number PyTorch multiplies on a GPU with ``1 / by``."""
    return x / torch.full_like(x, by)


def roi_levels(rois: Tensor, node: RoIAlign) -> Tensor:
    """Index of the level that each of the regions ``(K, 5)`` reads, int64 ``(K,)``."""
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    size = divided(area.sqrt(), node.finest_scale) + 1e-6
    level = torch.zeros(len(rois), dtype=torch.long, device=rois.device)
    for finer in range(1, len(node.levels)):
        level += size >= 2.0**finer
    return level


class _Axis:
    """Sample positions of regions along one axis.

    Args:
        start, end: First and last coordinate in pixels of the image, float32 ``(K,)``.
        bins: Number of bins.
        pixels: Number of pixels of the level.
        scale: Pixels of the level for one of the image.
        node: The node.
    """

    def __init__(
        self, start: Tensor, end: Tensor, bins: int, pixels: int, scale: float, node: RoIAlign
    ) -> None:
        offset = 0.5 if node.aligned else 0.0
        self.start = start * scale - offset
        side = end * scale - offset - self.start
        if not node.aligned:
            side = side.clamp(min=1.0)
        self.bin = divided(side, bins)
        if node.sampling_ratio > 0:
            self.samples = torch.full_like(side, node.sampling_ratio).long()
        else:
            self.samples = self.bin.ceil().clamp(min=0).long()
        self.index = torch.arange(bins, dtype=torch.float32, device=start.device)
        self.pixels = pixels

    def sample(self, which: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Sample ``i`` of each bin of the regions ``which``.

        Returns:
            Pixel below and above, weight of each, and whether the sample counts, ``(k, bins)``.
        """
        width = self.bin[which, None]
        position = (self.start[which, None] + self.index * width) + (
            (i + 0.5) * width
        ) / self.samples[which, None].float()
        counts = (position >= -1) & (position <= self.pixels)
        position = position.clamp(0, self.pixels)
        low = position.long()
        last = low >= self.pixels - 1
        low = torch.where(last, self.pixels - 1, low)
        high = torch.where(last, low, low + 1)
        above = torch.where(last, 0.0, position - low.float())
        return low, high, 1 - above, above, counts


def _corner(rows: Tensor, first: Tensor, y: Tensor, x: Tensor, width: int) -> Tensor:
    """Values ``(k, rows of bins, columns of bins, C)`` of the pixels at ``y`` and ``x``."""
    index = first[:, None, None] + y[:, :, None] * width + x[:, None, :]
    return rows[index.flatten()].view(*index.shape, rows.shape[1])


def _average(level: Tensor, rois: Tensor, scale: float, node: RoIAlign) -> Tensor:
    """Averages ``(K, rows of bins, columns of bins, C)`` over regions of one level."""
    _, channels, height, width = level.shape
    rows = level.permute(0, 2, 3, 1).reshape(-1, channels)
    y = _Axis(rois[:, 2], rois[:, 4], node.output_size[0], height, scale, node)
    x = _Axis(rois[:, 1], rois[:, 3], node.output_size[1], width, scale, node)
    first = rois[:, 0].long() * (height * width)
    total = rows.new_zeros(len(rois), *node.output_size, channels)
    chunk = max(1, _CHUNK // max(1, total[0].numel() if len(rois) else 1))
    for iy in range(int(y.samples.max()) if len(rois) else 0):
        for ix in range(int(x.samples.max())):
            active = ((y.samples > iy) & (x.samples > ix)).nonzero().squeeze(1)
            for which in active.split(chunk):
                y_low, y_high, hy, ly, y_counts = y.sample(which, iy)
                x_low, x_high, hx, lx, x_counts = x.sample(which, ix)
                corners = (
                    (y_low, x_low, hy, hx),
                    (y_low, x_high, hy, lx),
                    (y_high, x_low, ly, hx),
                    (y_high, x_high, ly, lx),
                )
                parts = (
                    _corner(rows, first[which], row, column, width).mul_(
                        of_row[:, :, None, None] * of_column[:, None, :, None]
                    )
                    for row, column, of_row, of_column in corners
                )
                sample = next(parts)
                for part in parts:
                    sample.add_(part)
                counts = y_counts[:, :, None, None] & x_counts[:, None, :, None]
                total[which] += sample.masked_fill_(~counts, 0)
    count = (y.samples * x.samples).clamp(min=1).float()
    return total / count[:, None, None, None]


def roi_align_average(levels: Sequence[Tensor], rois: Tensor, node: RoIAlign) -> Tensor:
    """Float32 averages of ``node``.

    Args:
        levels: Float32 values ``(N, C, H, W)``, the finest first.
        rois: Float32 regions ``(K, 5)``: image, x1, y1, x2, y2 in pixels of the image.
        node: Geometry.

    Returns:
        Float32 tensor ``(K, C, *node.output_size)``.
    """
    check_regions(node, rois, [level.shape for level in levels])
    result = rois.new_zeros(len(rois), *node.output_size, levels[0].shape[1])
    chosen = roi_levels(rois, node)
    for index, (level, scale) in enumerate(zip(levels, node.scales, strict=True)):
        which = (chosen == index).nonzero().squeeze(1)
        if len(which):
            result[which] = _average(level, rois[which], scale, node)
    return result.permute(0, 3, 1, 2).contiguous()
