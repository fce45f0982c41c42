"""What the compiled convolutions and linear layers of all devices share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..graph import ir
from ..graph.shapes import product_shape
from .steps import Window

TYPES = {torch.int8: 0, torch.uint8: 1, torch.float32: 2}
"""Numbers of the types of tensors in C++."""
ACTIVATIONS = {
    'identity': 0, 'relu': 1, 'leaky_relu': 1, 'relu6': 2, 'silu': 3, 'sigmoid': 4, 'tanh': 5,
    'hardswish': 6, 'hardsigmoid': 7, 'gelu': 8, 'gelu_tanh': 9, 'elu': 10, 'mish': 11, 'exp': 12,
}  # fmt: skip
"""Numbers of the activations in C++; ReLU is a leaky one of slope 0."""
SCALABLE = ('identity', 'relu', 'leaky_relu', 'relu6')
"""Those that may as well see steps of the result as values: powers of two scale them exactly."""


def parameter(activation: str, slope: float, scale: float = 1.0) -> float:
    """What the activations in C++ call alpha, where values are ``scale`` times as large."""
    return {'relu6': 6 * scale, 'leaky_relu': slope, 'elu': slope}.get(activation, 0.0)


class Layer:
    """A convolution or linear layer with its epilogue scaled to steps of the result's codes.

    Powers of two scale the whole epilogue exactly, so that it ends in codes by itself; that of a
    smooth activation is scaled at its end.

    Args:
        node: The layer.
        weight: int8 codes, ``(K, C / groups, R, S)`` or ``(K, C)``.
        multiplier, bias: Float32 ``(K,)`` of the epilogue.
        x_type: Type of the input codes.
        residual_type: Type of the codes added, or None.

    Attributes:
        dtype: Of the result.
        kernel: Rows and columns of a convolution's kernel, empty for a linear layer.
        window: The same with its steps for C++; a linear layer has a kernel of one pixel.
        groups: Of a convolution, 1 of a linear layer.
        outputs: K.
        multiplier, bias: Float32 ``(K,)``, for results in steps, or in values before a smooth
            activation.
        activation: One of the numbers in :data:`ACTIVATIONS`.
        alpha: Slope of negative values, upper bound of the clip in steps, or ELU's alpha.
        scale: What the epilogue ends with: steps of the result for each unit of it.
        residual_scale: What one step of the residual's codes is worth, in units of the epilogue.
    """

    def __init__(
        self,
        node: ir.Product,
        weight: Tensor,
        multiplier: Tensor,
        bias: Tensor,
        x_type: ir.TensorType,
        residual_type: ir.TensorType | None = None,
    ) -> None:
        self.node, self.x_type, self.residual_type = node, x_type, residual_type
        self.dtype = fp.code_dtype(node.type.signed) if node.type.is_codes else torch.float32
        whole = node.type.step_exponent if node.type.is_codes else 0
        step = whole if node.activation in SCALABLE else 0
        scale = math.ldexp(1.0, -step)
        self.scale = math.ldexp(1.0, step - whole)
        self._weight_shape = tuple(weight.shape)
        self.kernel = tuple(weight.shape[2:])
        self.window, self.groups = Window((1, 1), (1, 1), (0, 0), (1, 1)), 1
        if isinstance(node, ir.Conv):
            self.window = Window(self.kernel, node.stride, node.padding, node.dilation)
            self.groups = node.groups
        self.outputs = weight.shape[0]
        self.multiplier = (multiplier * scale).contiguous()
        self.bias = (bias * scale).contiguous()
        self.activation = ACTIVATIONS[node.activation]
        self.alpha = parameter(node.activation, node.slope, scale)
        self.residual_scale = 1.0
        if residual_type is not None:
            self.residual_scale = math.ldexp(1.0, residual_type.step_exponent - step)

    def result_shape(self, x: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result for input codes of shape ``(N, C, H, W)`` or ``(..., C)``.

        Raises:
            GraphError: if the input is smaller than the kernel, or has other channels.
        """
        return product_shape(self.node, self._weight_shape, x)
