"""Checks that an ``Int8Graph`` is what it claims to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import fixed_point as fp
from .fields import check_fields
from .nodes import (
    Activate,
    Add,
    AvgPool,
    Concat,
    Dequantize,
    Flatten,
    FloatCall,
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
    channels = constants[node.weight].shape[0]
    for key in (node.exponents, node.multiplier, node.bias):
        if constants[key].shape != (channels,):
            raise GraphError(
                f'{node.name}: found {key!r} of shape {tuple(constants[key].shape)}, '
                f'wanted ({channels},)'
            )
    axes = 4 if isinstance(node, (Conv, ConvTranspose)) else 2
    if constants[node.weight].dim() != axes:
        raise GraphError(f'{node.name}: found a weight that has not {axes} axes')
    if node.residual is not None and not types[node.residual].is_codes:
        raise GraphError(f'{node.name}: found a float32 residual, wanted codes')


def _check_channels(node: Affine | Normalize, constants: Mapping[str, Tensor]) -> None:
    keys = (node.multiplier, node.bias) if isinstance(node, Affine) else (node.weight, node.bias)
    shapes = set()
    for key in keys:
        constant = constants.get(key)
        if constant is None or constant.dtype != torch.float32 or constant.dim() != 1:
            raise GraphError(f'{node.name}: found no float32 constant {key!r} per channel')
        shapes.add(constant.shape)
    if len(shapes) != 1:
        raise GraphError(f'{node.name}: found constants of {shapes}, wanted one shape')
    channels = shapes.pop()[0]
    if isinstance(node, GroupNorm) and (node.groups < 1 or channels % node.groups):
        raise GraphError(f'{node.name}: found {node.groups} groups of {channels} channels')


def _check_pool(node: AvgPool) -> None:
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
        if isinstance(node, RoIAlign):
            _check_roi_align(node, types)
        activation = getattr(node, 'activation', 'identity')
        if activation not in ACTIVATIONS:
            raise GraphError(
                f'{node.name}: found activation {activation!r}, wanted one of {ACTIVATIONS}'
            )
        if isinstance(node, Product):
            _check_product(node, types, constants)
        if isinstance(node, (Affine, Normalize)):
            _check_channels(node, constants)
        if isinstance(node, AvgPool):
            _check_pool(node)
        types[node.name] = node.type
    for ref in iter_refs(outputs):
        if ref.name not in types:
            raise GraphError(f'outputs: found {ref.name!r}, wanted a tensor of the graph')
