"""Checks that an ``Int8Graph`` is what it claims to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import fixed_point as fp
from .fields import KERNEL, check_fields
from .nodes import (
    Activate,
    Add,
    AvgPool,
    Concat,
    Dequantize,
    Flatten,
    FloatCall,
    Input,
    MaxPool,
    Mul,
    Quantize,
    Requantize,
    RoIAlign,
    Slice,
    Upsample,
    iter_refs,
)
from .norms import (
    Affine,
    GroupNorm,
    Normalize,
)
from .products import (
    Conv,
    ConvTranspose,
    Product,
)
from .types import (
    ACTIVATIONS,
    OFFSETS,
    GraphError,
    Node,
    TensorType,
)

_READ_CODES = (
    Product, Activate, Add, Affine, AvgPool, Dequantize, Mul, Normalize, Requantize,
)  # fmt: skip


_MULTIPLIER = 2.0**80
"""Largest magnitude of a multiplier or bias: with it a sum of 32 bits stays finite in float32."""
_FACTOR = 2.0**40
"""Largest magnitude of a norm's weight or bias, with the smallest eps and the largest step."""
_SUM = 2**31


def _values(constant: Tensor, name: str, key: str, limit: float) -> None:
    """Return if the constant ``key`` of node ``name`` holds no value beyond ``limit``, nor NaN."""
    low, high = constant.aminmax()
    if not (low >= -limit and high <= limit):
        raise GraphError(
            f'{name}: found {key!r} from {low.item():.4g} to {high.item():.4g}, wanted finite '
            f'values up to {limit:.4g}'
        )


def _check_sums(node: Product, weight: Tensor, kind: TensorType) -> None:
    """Return if no sum of products of codes can leave 32 bits, whatever the input."""
    low, high = fp.code_range(kind.signed)
    largest = max(kind.offset - low, high - kind.offset)
    # A transposed convolution adds some of the products of its output channel.
    if math.prod(weight.shape[1:]) * 128 * largest < _SUM:
        return
    sums = max(int(row.to(torch.int16).abs().sum(dtype=torch.int64)) for row in weight)
    if sums * largest >= _SUM:
        raise GraphError(
            f'{node.name}: found weights whose sums of products reach {sums * largest}, wanted '
            'sums below 2**31'
        )


def _check_product(
    node: Product, types: Mapping[str, TensorType], constants: Mapping[str, Tensor]
) -> None:
    for key, dtype in (
        (node.weight, torch.int8),
        (node.exponents, torch.int32),
        (node.multiplier, torch.float32),
        (node.bias, torch.float32),
    ):
        if key not in constants:
            raise GraphError(f'{node.name}: found no constant {key!r}, wanted one')
        constant = constants[key]
        if constant.dtype != dtype:
            raise GraphError(f'{node.name}: found {key!r} as {constant.dtype}, wanted {dtype}')
    weight = constants[node.weight]
    axes = 4 if isinstance(node, (Conv, ConvTranspose)) else 2
    if weight.dim() != axes or 0 in weight.shape or max(weight.shape[2:], default=1) > KERNEL:
        raise GraphError(
            f'{node.name}: found a weight of shape {tuple(weight.shape)}, wanted one with {axes} '
            f'axes and a kernel of at most {KERNEL}x{KERNEL}'
        )
    channels = weight.shape[0]
    for key in (node.exponents, node.multiplier, node.bias):
        if constants[key].shape != (channels,):
            raise GraphError(
                f'{node.name}: found {key!r} of shape {tuple(constants[key].shape)}, '
                f'wanted ({channels},)'
            )
    _values(constants[node.multiplier], node.name, node.multiplier, _MULTIPLIER)
    _values(constants[node.bias], node.name, node.bias, _MULTIPLIER)
    low, high = constants[node.exponents].aminmax()
    if low < fp.EXPONENT_MIN or high > fp.EXPONENT_MAX:
        raise GraphError(
            f'{node.name}: found exponents {int(low)} to {int(high)}, wanted '
            f'{fp.EXPONENT_MIN} to {fp.EXPONENT_MAX}'
        )
    if isinstance(node, (Conv, ConvTranspose)) and channels % node.groups:
        raise GraphError(f'{node.name}: found {node.groups} groups of {channels} channels')
    if isinstance(node, ConvTranspose) and any(
        more >= max(stride, dilation)
        for more, stride, dilation in zip(
            node.output_padding, node.stride, node.dilation, strict=True
        )
    ):
        raise GraphError(
            f'{node.name}: found output padding {node.output_padding}, wanted less than stride or '
            'dilation'
        )
    if node.residual is not None and not types[node.residual].is_codes:
        raise GraphError(f'{node.name}: found a float32 residual, wanted codes')
    _check_sums(node, weight, types[node.x])


def _check_channels(node: Affine | Normalize, constants: Mapping[str, Tensor]) -> None:
    affine = isinstance(node, Affine)
    keys = (node.multiplier, node.bias) if isinstance(node, Affine) else (node.weight, node.bias)
    shapes = set()
    for key in keys:
        constant = constants.get(key)
        if constant is None or constant.dtype != torch.float32 or constant.dim() != 1:
            raise GraphError(f'{node.name}: found no float32 constant {key!r} per channel')
        shapes.add(constant.shape)
    if len(shapes) != 1 or 0 in (channels := shapes.pop()):
        raise GraphError(f'{node.name}: found constants {keys} of other or no channels')
    for key in keys:
        _values(constants[key], node.name, key, _MULTIPLIER if affine else _FACTOR)
    if isinstance(node, GroupNorm) and channels[0] % node.groups:
        raise GraphError(f'{node.name}: found {node.groups} groups of {channels[0]} channels')


def _check_pool(node: AvgPool | MaxPool) -> None:
    if node.kernel is not None and any(
        2 * padding > side for side, padding in zip(node.kernel, node.padding, strict=True)
    ):
        raise GraphError(f'{node.name}: found padding {node.padding} for a kernel {node.kernel}')


def _check_offset(node: Node) -> None:
    kind = node.type
    if kind.offset not in OFFSETS or (kind.offset and (kind.signed or not kind.is_codes)):
        raise GraphError(
            f'{node.name}: found {kind} with offset {kind.offset}, wanted one of {OFFSETS} for '
            'uint8 codes and none for others'
        )


def _check_roi_align(node: RoIAlign, types: Mapping[str, TensorType]) -> None:
    kinds = {types[name] for name in node.levels}
    if len(kinds) != 1 or not next(iter(kinds)).is_codes or not node.type.is_codes:
        raise GraphError(f'{node.name}: wanted codes from levels of one type')
    if types[node.rois].is_codes:
        raise GraphError(f'{node.name}: found codes as regions, wanted float32')
    if len(node.scales) != len(node.levels):
        raise GraphError(
            f'{node.name}: found {len(node.scales)} scales, wanted one for each of '
            f'{len(node.levels)} levels'
        )


def validate(nodes: Sequence[Node], outputs: Any, constants: Mapping[str, Tensor]) -> None:
    """Return if every node reads earlier tensors of the kind it can read.

    Raises:
        GraphError: naming the first node that does not.
    """
    types: dict[str, TensorType] = {}
    inputs: set[str] = set()
    for node in nodes:
        check_fields(node)
        if node.name in types:
            raise GraphError(f'{node.name}: found two tensors of this name, wanted one')
        if node.type.exponent is not None:
            try:
                fp.check_exponent(node.type.exponent, node.name)
            except ValueError as error:
                raise GraphError(str(error)) from None
        _check_offset(node)
        for name in node.inputs:
            if name not in types:
                raise GraphError(f'{node.name}: found input {name!r}, wanted an earlier tensor')
        read = [types[name] for name in node.inputs]
        if isinstance(node, (FloatCall, Dequantize)) and node.type.is_codes:
            raise GraphError(f'{node.name}: found codes as the result, wanted float32')
        if isinstance(node, Quantize) and (read[0].is_codes or not node.type.is_codes):
            raise GraphError(f'{node.name}: wanted float32 to codes')
        if isinstance(node, _READ_CODES) and not read[0].is_codes:
            raise GraphError(f'{node.name}: found float32 input {node.inputs[0]!r}, wanted codes')
        if isinstance(node, (Add, Mul)) and not read[1].is_codes:
            raise GraphError(f'{node.name}: found float32 input {node.inputs[1]!r}, wanted codes')
        if isinstance(node, (Add, AvgPool, Mul, Requantize)) and not node.type.is_codes:
            raise GraphError(f'{node.name}: found float32 as the result, wanted codes')
        if isinstance(node, (Flatten, MaxPool, Slice, Upsample)) and read[0] != node.type:
            raise GraphError(f'{node.name}: found type {read[0]}, wanted {node.type} as its input')
        if isinstance(node, Concat) and any(kind != node.type for kind in read):
            raise GraphError(f'{node.name}: found other types among its inputs than {node.type}')
        if isinstance(node, (Concat, Flatten, MaxPool, Upsample)) and not node.type.is_codes:
            raise GraphError(f'{node.name}: found float32, wanted codes to move')
        if isinstance(node, RoIAlign):
            _check_roi_align(node, types)
            if node.rois not in inputs:
                raise GraphError(f'{node.name}: found computed regions, wanted those of an input')
        if isinstance(node, Input):
            inputs.add(node.name)
        activation = getattr(node, 'activation', 'identity')
        if activation not in ACTIVATIONS:
            raise GraphError(
                f'{node.name}: found activation {activation!r}, wanted one of {ACTIVATIONS}'
            )
        if isinstance(node, Product):
            _check_product(node, types, constants)
        if isinstance(node, (Affine, Normalize)):
            _check_channels(node, constants)
        if isinstance(node, (AvgPool, MaxPool)):
            _check_pool(node)
        if isinstance(node, (Concat, RoIAlign)) and len(node.inputs) == isinstance(node, RoIAlign):
            raise GraphError(f'{node.name}: found no tensors to read, wanted some')
        if isinstance(node, Upsample) and (node.scale is None) == (node.like is None):
            raise GraphError(f'{node.name}: found scale={node.scale} and like={node.like}, wanted '
                             'one of them')  # fmt: skip
        types[node.name] = node.type
    for ref in iter_refs(outputs):
        if ref.name not in types:
            raise GraphError(f'outputs: found {ref.name!r}, wanted a tensor of the graph')
