"""Checks that an ``Int8Graph`` is what it claims to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import fixed_point as fp
from .nodes import (
    ACTIVATIONS,
    Add,
    Concat,
    Conv,
    Dequantize,
    Flatten,
    FloatCall,
    GraphError,
    MaxPool,
    Node,
    Product,
    Quantize,
    Requantize,
    RoIAlign,
    TensorType,
    Upsample,
    iter_refs,
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
    channels = constants[node.weight].shape[0]
    for key in (node.exponents, node.multiplier, node.bias):
        if constants[key].shape != (channels,):
            raise GraphError(
                f'{node.name}: found {key!r} of shape {tuple(constants[key].shape)}, '
                f'wanted ({channels},)'
            )
    axes = 4 if isinstance(node, Conv) else 2
    if constants[node.weight].dim() != axes:
        raise GraphError(f'{node.name}: found a weight that has not {axes} axes')
    if node.residual is not None and not types[node.residual].is_codes:
        raise GraphError(f'{node.name}: found a float32 residual, wanted codes')


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
        if node.name in types:
            raise GraphError(f'{node.name}: found two tensors of this name, wanted one')
        if node.type.is_codes:
            try:
                fp.check_exponent(node.type.exponent, node.name)
            except ValueError as error:
                raise GraphError(str(error)) from None
        for name in node.inputs:
            if name not in types:
                raise GraphError(f'{node.name}: found input {name!r}, wanted an earlier tensor')
        read = [types[name] for name in node.inputs]
        if isinstance(node, (FloatCall, Dequantize)) and node.type.is_codes:
            raise GraphError(f'{node.name}: found codes as the result, wanted float32')
        if isinstance(node, Quantize) and (read[0].is_codes or not node.type.is_codes):
            raise GraphError(f'{node.name}: wanted float32 to codes')
        if isinstance(node, (Product, Add, Dequantize, Requantize)) and not read[0].is_codes:
            raise GraphError(f'{node.name}: found float32 input {node.inputs[0]!r}, wanted codes')
        if isinstance(node, Add) and not read[1].is_codes:
            raise GraphError(f'{node.name}: found float32 input {node.inputs[1]!r}, wanted codes')
        if isinstance(node, (Add, Requantize)) and not node.type.is_codes:
            raise GraphError(f'{node.name}: found float32 as the result, wanted codes')
        if isinstance(node, (Flatten, MaxPool, Upsample)) and read[0] != node.type:
            raise GraphError(f'{node.name}: found type {read[0]}, wanted {node.type} as its input')
        if isinstance(node, Concat) and any(kind != node.type for kind in read):
            raise GraphError(f'{node.name}: found other types among its inputs than {node.type}')
        if isinstance(node, RoIAlign):
            _check_roi_align(node, types)
        if isinstance(node, (Product, Add)) and node.activation not in ACTIVATIONS:
            raise GraphError(
                f'{node.name}: found activation {node.activation!r}, wanted one of {ACTIVATIONS}'
            )
        if isinstance(node, Product):
            _check_product(node, types, constants)
        types[node.name] = node.type
    for ref in iter_refs(outputs):
        if ref.name not in types:
            raise GraphError(f'outputs: found {ref.name!r}, wanted a tensor of the graph')
