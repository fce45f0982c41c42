"""Checks that every QuantizeLinear and DequantizeLinear stands where TensorRT fuses it.

TensorRT's explicit quantization runs an operator in int8 if its inputs come from DequantizeLinear
and its result goes to QuantizeLinear, with only pointwise operators between. A QuantizeLinear
between a convolution and its activation or residual addition would break that fusion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from typing import Any

import numpy as np

from ..graph.ir import OFFSETS
from .builder import ExportError
from .packages import require

WEIGHTED = frozenset({'Conv', 'ConvTranspose', 'Gemm', 'MatMul'})
POINTWISE = frozenset({
    'Clip', 'Div', 'Elu', 'HardSigmoid', 'HardSwish', 'LeakyRelu', 'Pow', 'Relu', 'Sigmoid',
    'Softplus', 'Tanh',
})  # fmt: skip
"""Operators that an activation begins with."""


def check_placement(model: Any, unsigned: bool = True, rounded: Set[str] = frozenset()) -> None:
    """Return if TensorRT's explicit quantization fuses every pair of ``model``.

    Args:
        model: ONNX ``ModelProto``.
        unsigned: Whether codes may be uint8, which TensorRT's own parser refuses.
        rounded: Codes that the graph itself has before an activation.

    Raises:
        ExportError: naming the first node that stands elsewhere, and why.
    """
    helper = require('onnx').numpy_helper
    given = {value.name for value in model.graph.input}
    nodes = list(model.graph.node)
    constants = {value.name: helper.to_array(value) for value in model.graph.initializer}
    makers = {name: node for node in nodes for name in node.output}
    readers = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    for node in nodes:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            _check_constants(node, constants, unsigned)
        if node.op_type in WEIGHTED:
            _check_weighted(node, makers, constants)
        if node.op_type == 'QuantizeLinear':
            if node.output[0] not in rounded:
                _check_not_before_pointwise(node, makers, readers)
            _check_readers(node, readers, unsigned)
        if node.op_type == 'DequantizeLinear' and node.input[0] not in constants.keys() | given:
            _check_source(node, makers, unsigned)


def _kind(makers: dict, name: str) -> str:
    return makers[name].op_type if name in makers else ''


def _check_constants(node: Any, constants: dict, unsigned: bool) -> None:
    scale, zero = (constants.get(name) for name in node.input[1:3])
    if scale is None or not (np.isfinite(scale) & (scale > 0)).all():
        raise ExportError(f'{node.name}: found a scale that is not positive, wanted a constant > 0')
    wanted = OFFSETS if unsigned and zero is not None and zero.dtype == np.uint8 else (0,)
    if zero is None or not np.isin(zero, wanted).all():
        found = 'none' if zero is None else zero
        raise ExportError(f'{node.name}: found the zero point {found}, wanted one of {wanted}')
    if zero.dtype != np.int8 and not unsigned:
        raise ExportError(f'{node.name}: found codes of {zero.dtype}, wanted int8 for TensorRT')


def _check_weighted(node: Any, makers: dict, constants: dict) -> None:
    from_codes = [_kind(makers, name) == 'DequantizeLinear' for name in node.input[:2]]
    if from_codes[0] != from_codes[1]:
        which = 'weights' if from_codes[0] else 'inputs'
        raise ExportError(
            f'{node.name}: found {which} that come from no DequantizeLinear while the other side '
            'does, wanted both or none'
        )


def _check_not_before_pointwise(node: Any, makers: dict, readers: dict) -> None:
    """A sum that is rounded only to be activated or added to should be rounded afterwards."""
    if _kind(makers, node.input[0]) not in WEIGHTED:
        return
    after = [
        reader
        for dequantize in readers[node.output[0]]
        if dequantize.op_type == 'DequantizeLinear'
        for reader in readers[dequantize.output[0]]
    ]
    # Smooth activations are several operators, which read the sum beside an Add or a Mul.
    after = [reader for reader in after if reader.op_type not in ('Add', 'Mul')]
    if after and all(reader.op_type in POINTWISE for reader in after):
        raise ExportError(
            f'{node.name}: found QuantizeLinear between {node.input[0]!r} and {after[0].name}, '
            'wanted it after the activation; export with --target standard'
        )


def _on_codes(unsigned: bool) -> tuple[str, ...]:
    """Operators that may read codes and give codes; for TensorRT itself there are none."""
    return ('Concat', 'Identity') if unsigned else ('Identity',)


def _check_readers(node: Any, readers: dict, unsigned: bool) -> None:
    for reader in readers[node.output[0]]:
        if reader.op_type not in ('DequantizeLinear', *_on_codes(unsigned)):
            raise ExportError(
                f'{node.name}: found codes that {reader.name} ({reader.op_type}) reads, wanted '
                'DequantizeLinear behind them'
            )


def _check_source(node: Any, makers: dict, unsigned: bool) -> None:
    kind = _kind(makers, node.input[0])
    if kind not in ('QuantizeLinear', *_on_codes(unsigned)):
        raise ExportError(
            f'{node.name}: found codes that {kind or "nothing"} made, wanted QuantizeLinear'
        )
