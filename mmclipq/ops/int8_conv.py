"""Int8 convolution as an operator of torch, ``torch.ops.mmclipq.int8_conv2d``.

The CPU has the reference's arithmetic, a GPU the compiled CUDA operators. Backends do not call it:
they plan whole graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ClipQError
from ..graph import ir
from .arithmetic import conv_sum, finish, scaled
from .cuda import library as cuda_library
from .cuda.library import CudaLibrary
from .cuda.products import CudaProduct
from .cuda.program import CudaProgram
from .cuda.tiles import choices
from .layer import SCALABLE, Layer
from .program import Slot, memory_format

_SCHEMA = (
    '(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, *, int[2] stride=[1, 1], '
    'int[2] padding=[0, 0], int[2] dilation=[1, 1], int groups=1, str activation="identity", '
    'float slope=0.0, int? exponent=None, bool signed=True) -> Tensor'
)


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: str = 'identity',
    slope: float = 0.0,
    exponent: int | None = None,
    signed: bool = True,
) -> Tensor:
    """Convolution of codes: ``act(float32(sum of x * weight) * multiplier + bias)``.

    Each float32 operation is rounded by itself; the result is the same on every device.

    Args:
        x: int8 or uint8 codes ``(N, C, H, W)``; padding is code 0.
        weight: int8 codes ``(K, C / groups, R, S)``.
        multiplier, bias: Float32 ``(K,)``.
        stride, padding, dilation, groups: As in :func:`torch.nn.functional.conv2d`.
        activation: One of :data:`mmclipq.ops.layer.SCALABLE`.
        slope: Factor of negative values in ``'leaky_relu'``.
        exponent: Range exponent of the result's codes, rounded half to even and saturated; None for
            float32 values.
        signed: Whether the result's codes are int8, else uint8.

    Returns:
        ``(N, K, P, Q)`` with channels last in memory.

    Raises:
        ClipQError: if a dtype or shape does not fit.
    """
    return torch.ops.mmclipq.int8_conv2d(
        x, weight, multiplier, bias, stride=stride, padding=padding, dilation=dilation,
        groups=groups, activation=activation, slope=slope, exponent=exponent, signed=signed,
    )  # fmt: skip


def _check(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, node: ir.Conv) -> None:
    found = None
    if x.dim() != 4 or x.dtype not in (torch.int8, torch.uint8):
        found = f'x of {x.dtype} {tuple(x.shape)}, wanted int8 or uint8 (N, C, H, W)'
    elif weight.dim() != 4 or weight.dtype != torch.int8:
        found = f'weight of {weight.dtype} {tuple(weight.shape)}, wanted int8 (K, C, R, S)'
    elif weight.shape[1] * node.groups != x.shape[1] or weight.shape[0] % node.groups:
        found = (
            f'weight {tuple(weight.shape)} in {node.groups} groups, wanted {x.shape[1]} channels'
        )
    elif node.activation not in SCALABLE:
        found = f'activation {node.activation!r}, wanted one of {sorted(SCALABLE)}'
    for name, values in (('multiplier', multiplier), ('bias', bias)):
        if found is None and (values.dtype, values.shape) != (torch.float32, weight.shape[:1]):
            found = f'{name} of {values.dtype} {tuple(values.shape)}, wanted float32 of K items'
    if found is None and len({t.device for t in (x, weight, multiplier, bias)}) > 1:
        found = 'tensors on several devices, wanted one'
    if found is not None:
        raise ClipQError(f'int8_conv2d: found {found}')


def _pair(values: Sequence[int]) -> tuple[int, int]:
    rows, columns = values
    return rows, columns


def _node(
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = 'identity',
    slope: float = 0.0,
    exponent: int | None = None,
    signed: bool = True,
) -> ir.Conv:
    # torch leaves out arguments that are the schema's defaults, so they stand here, too.
    return ir.Conv(
        'int8_conv2d', ir.TensorType(exponent, signed), 'x', 'w', 'e', 'm', 'b', activation, slope,
        stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation), groups=groups,
    )  # fmt: skip


def _layer(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, node: ir.Conv) -> Layer:
    return Layer(node, weight, multiplier, bias, ir.TensorType(0, x.dtype == torch.int8))


def _empty_result(x: Tensor, product: Layer) -> Tensor:
    shape = product.result_shape(x.shape)
    return torch.empty(shape, dtype=product.dtype, device=x.device, memory_format=memory_format(4))


def launch(
    library: CudaLibrary, x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, node: ir.Conv
) -> Tensor:
    """The convolution ``node`` by the compiled operators, on the current stream."""
    _check(x, weight, multiplier, bias, node)
    product = CudaProduct(node, weight, multiplier, bias, ir.TensorType(0, x.dtype == torch.int8))
    result = _empty_result(x, product)
    n, c, h, w = x.shape
    src = Slot(x.shape, x.dtype, external=0, stride=product.channels)
    dst = Slot(result.shape, result.dtype, external=1)
    rows = x.new_zeros(n, h, w, src.stride)
    rows[..., :c] = x.permute(0, 2, 3, 1)
    step = product.step(x.shape, result.shape)
    step.src_stride, step.dst_stride = src.stride, dst.stride
    step.wide_dst = product.dtype.itemsize == 1 and product.outputs % 16 == 0
    if not product.grouped:
        pixels = result.numel() // product.outputs
        gpu = library.properties(x.device.index or 0)
        found = choices(
            library.tiles, pixels, product.outputs, product.depth, product.few_channels, gpu
        )
        step.tile = next(choice for choice in found if choice.splits == 1).tile.number
    program = CudaProgram(2, library, x.device)
    program.add(step, {'src': src, 'dst': dst}, product)
    program.finish().run(rows.new_empty(0), [rows, result])
    return result


def _on_cpu(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, **options: Any) -> Tensor:
    node = _node(**options)
    _check(x, weight, multiplier, bias, node)
    _layer(x, weight, multiplier, bias, node).result_shape(x.shape)  # refuses an image too small
    v = scaled(conv_sum(x.double(), weight.double(), node), multiplier, bias, node)
    return finish(v, node).contiguous(memory_format=memory_format(4))


def _on_cuda(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, **options: Any) -> Tensor:
    with torch.cuda.device(x.device):
        return launch(cuda_library.library(), x, weight, multiplier, bias, _node(**options))


def _without_data(
    x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, **options: Any
) -> Tensor:
    node = _node(**options)
    _check(x, weight, multiplier, bias, node)
    return _empty_result(x, _layer(x, weight, multiplier, bias, node))


_OP = 'mmclipq::int8_conv2d'
torch.library.define(_OP, _SCHEMA)
torch.library.impl(_OP, 'cpu', _on_cpu)
torch.library.impl(_OP, 'cuda', _on_cuda)
torch.library.register_fake(_OP, _without_data)
