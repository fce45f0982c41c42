"""Products by ``torch._int_mm``: no compiler needed on a GPU, and an oracle for what has one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..graph import ir
from ..ops.arithmetic import depthwise_sum, padded
from .base import register_backend
from .reference import ReferenceBackend

MAX_BYTES = 1 << 28
"""Memory for the patches of a convolution; larger ones are multiplied piece by piece. One row of
results is the least."""
_MIN_ROWS = 17  # on a GPU torch._int_mm wants so many, and
_MULTIPLE = 8  # the other two sizes as multiples of this


def _rounded_up(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


@dataclass(frozen=True)
class _Matrix:
    """Weight codes of one group of a layer.

    Attributes:
        columns: int8 ``(depth, outputs)``, both rounded up with zeros.
        depth, outputs: How many of them count.
        shift: int32 ``(outputs,)``, what uint8 inputs lack once they are int8, less the part of
            their offset; None for int8 ones.
    """

    columns: Tensor
    depth: int
    outputs: int
    shift: Tensor | None

    @classmethod
    def make(cls, rows: Tensor, kind: ir.TensorType) -> _Matrix:
        """From int8 weights ``(outputs, depth)`` and the type of the inputs."""
        outputs, depth = rows.shape
        added = _rounded_up(depth) - depth, _rounded_up(outputs) - outputs
        # A transposed view: on a GPU a contiguous (depth, outputs) matrix is several times slower.
        columns = F.pad(rows, (0, added[0], 0, added[1])).contiguous().t()
        # In int64, then wrapped like the sums that it joins.
        moved = (128 - kind.offset) * rows.sum(1, dtype=torch.int64)
        shift = None if kind.signed else moved.to(torch.int32)
        return cls(columns, depth, outputs, shift)

    def product(self, x: Tensor) -> Tensor:
        """int32 sums ``(M, outputs)`` of int8 ``x`` ``(M, depth)``.

        Raises:
            GraphError: if ``x`` has another depth.
        """
        count, depth = x.shape
        if depth != self.depth:  # filling up would hide it
            raise ir.GraphError(
                f'found codes of depth {depth}, wanted {self.depth} as the weights have; export '
                'the file again'
            )
        added = len(self.columns) - depth, max(0, _MIN_ROWS - count)
        if any(added):
            x = F.pad(x, (0, added[0], 0, added[1]))
        sums = torch._int_mm(x.contiguous(), self.columns)[:count, : self.outputs]
        return sums if self.shift is None else sums + self.shift


def _as_int8(x: Tensor) -> Tensor:
    """uint8 codes less 128, int8 ones as they are."""
    return x if x.dtype == torch.int8 else x.bitwise_xor(128).view(torch.int8)


def _patches(x: Tensor, kernel: Sequence[int], node: ir.Conv) -> Tensor:
    """What each result reads: views ``(N, rows, columns, *kernel, C)`` of ``(N, H, W, C)``."""
    far = [d * (k - 1) for d, k in zip(node.dilation, kernel, strict=True)]
    rows, columns = (
        (size - reach - 1) // step + 1
        for size, reach, step in zip(x.shape[1:3], far, node.stride, strict=True)
    )
    if rows < 1 or columns < 1:  # the view would be empty
        raise ir.GraphError(
            f'{node.name}: found an input of {x.shape[1]}x{x.shape[2]} with its padding, wanted '
            'one that its kernel fits into; use larger images'
        )
    image, line, pixel, channel = x.stride()
    (down, right), (far_y, far_x) = node.stride, node.dilation
    return x.as_strided(
        (len(x), rows, columns, *kernel, x.shape[3]),
        (image, down * line, right * pixel, far_y * line, far_x * pixel, channel),
    )


@functools.cache
def _why_unavailable(device: str) -> str:
    """Why ``torch._int_mm`` cannot be used; tried with products that tell whether it is exact."""
    try:
        # Odd, because oneDNN halves weights on old processors; large, because it may saturate.
        codes = torch.full((32, 64), 127, dtype=torch.int8, device=device)
        exact = bool((torch._int_mm(codes, codes.t()) == 64 * 127**2).all())
    except (AttributeError, AssertionError, RuntimeError) as error:
        reason = str(error).strip().split('\n')[0]
        return f'torch._int_mm does not run on {device} ({reason}); use --backend reference'
    return '' if exact else f'torch._int_mm is not exact on {device}; use --backend reference'


@register_backend
class IntMmBackend(ReferenceBackend):
    """The reference with exact int32 products of int8 matrices, on any device.

    Convolutions copy their patches into a matrix (im2col) of at most :data:`MAX_BYTES`. Codes lie
    with channels last in memory.

    Raises:
        ClipQError: if this torch has no exact ``torch._int_mm`` on the device.
    """

    name = 'int_mm'

    def __init__(self, graph, islands=None, device='cpu'):
        super().__init__(graph, islands, device)
        self._matrices = {node.name: self._prepared(node) for node in graph.products()}

    @staticmethod
    def unavailable(device: str) -> str:
        return _why_unavailable(str(device))

    def _prepared(self, node: ir.Product) -> list[_Matrix]:
        """One matrix for each group; none for depthwise convolutions."""
        weight, groups = self.constants[node.weight], 1
        if isinstance(node, ir.ConvTranspose):
            return []
        if isinstance(node, ir.Conv):
            groups = node.groups
            if groups == len(weight) and weight.shape[1] == 1 and groups > 1:
                return []
            weight = weight.permute(0, 2, 3, 1)
        kind = self.types[node.x]
        return [_Matrix.make(rows.flatten(1), kind) for rows in weight.chunk(groups)]

    def linear(self, node, x, residual=None):
        (matrix,) = self._matrices[node.name]
        acc = matrix.product(_as_int8(x).flatten(0, -2)).view(*x.shape[:-1], matrix.outputs)
        return self._epilogue(node, acc, residual)

    def conv(self, node, x, residual=None):
        weight, matrices = self.constants[node.weight], self._matrices[node.name]
        if not matrices:
            q = x.int() - self.types[node.x].offset
            acc = depthwise_sum(q, weight.int(), node)
            return self._epilogue(node, acc, residual)
        # The code that stands for zero pads, before the shift of uint8.
        x = padded(x, weight, node, self.types[node.x].offset).permute(0, 2, 3, 1).contiguous()
        patches = _patches(_as_int8(x), weight.shape[2:], node)
        groups = patches.chunk(node.groups, -1)
        acc = x.new_empty(*patches.shape[:3], len(weight), dtype=torch.int32)
        parts = acc.chunk(node.groups, -1)
        for matrix, source, target in zip(matrices, groups, parts, strict=True):
            _multiply(matrix, source, target)
        return self._epilogue(node, acc.permute(0, 3, 1, 2), residual)


def _multiply(matrix: _Matrix, patches: Tensor, sums: Tensor) -> None:
    """Write the sums of ``patches`` into int32 ``sums`` ``(N, rows, columns, outputs)``."""
    images, rows, columns = sums.shape[:3]
    at_once = max(1, MAX_BYTES // max(1, columns * len(matrix.columns)))  # rows of results
    whole, some = max(1, at_once // max(1, rows)), max(1, min(rows, at_once))
    for image in range(0, images, whole):
        for row in range(0, rows, some):
            here = slice(image, image + whole), slice(row, row + some)
            part = patches[here]
            found = matrix.product(part.reshape(part.shape[:3].numel(), -1))
            sums[here] = found.view(*part.shape[:3], -1)
