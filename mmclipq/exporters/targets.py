"""The forms of one graph that different runtimes want.

``standard`` has one QuantizeLinear after each activation or residual addition, where TensorRT's
explicit quantization fuses it: the arithmetic of the reference up to float32 summation order.
Zero points are the offsets of uint8 tensors, else 0, and concatenation joins codes: behind a
concatenation of signed values, which OpenVINO 2026.4 shifts to uint8, its convolution is off by
many steps.

``tensorrt`` is the same with int8 and zero point 0 alone, because TensorRT's parser refuses all
else: a uint8 tensor, with offset or without, becomes int8 of twice the step, whose range contains
its own. There concatenation joins values.

``onnxruntime`` is ``standard`` with a pair between a convolution and an activation or addition that
ONNX Runtime's integer convolution cannot contain. ONNX Runtime also wants a convolution's input and
output of one type, so signed codes are stored as uint8 with zero point 128: the same numbers,
except at inputs and outputs, which stay as they are. For relu and relu6 the pair changes nothing
(rounding is monotonous, and 0 and 6 are codes). A leaky relu after it differs by at most one step
while the sums lie in the tensor's range, and saturates below it; a residual sum rounds twice.
Before a smooth activation the pair has 255 steps over all sums that the activation tells apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.ir import TensorType
from .builder import ExportError


@dataclass(frozen=True)
class Target:
    """How a graph is written.

    Attributes:
        extra_pairs: Whether sums are also rounded before what an integer convolution of ONNX
            Runtime cannot contain, and signed codes have the zero point 128.
        concat_codes: Whether Concat joins codes and not their values.
        unsigned: Whether codes may be uint8.
        fuses: Whether the placement must be one that TensorRT fuses.
    """

    extra_pairs: bool = False
    concat_codes: bool = True
    unsigned: bool = True
    fuses: bool = True

    def type_of(self, kind: TensorType) -> TensorType:
        """What a graph's tensor is in the file."""
        if self.unsigned or not kind.is_codes:
            return kind
        return TensorType(kind.exponent, True)


TARGETS = {
    'standard': Target(),
    'tensorrt': Target(concat_codes=False, unsigned=False),
    'onnxruntime': Target(extra_pairs=True, fuses=False),
}
DEFAULT_TARGET = 'standard'


def target_of(name: str) -> Target:
    """The target called ``name``; raises ExportError if there is none."""
    if name not in TARGETS:
        raise ExportError(f'found target {name!r}, wanted one of {sorted(TARGETS)}')
    return TARGETS[name]
