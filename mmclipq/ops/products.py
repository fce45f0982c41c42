"""Int8 convolutions and linear layers in C++ through oneDNN, bit for bit those of the reference."""

from __future__ import annotations

import ctypes
import math
import weakref

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..errors import ClipQError
from ..graph import ir
from .library import library

_ERROR_SIZE = 512
_TYPES = {torch.int8: 0, torch.uint8: 1, torch.float32: 2}
_PAIR = ctypes.c_int64 * 2


class _Spec(ctypes.Structure):
    """``ClipqProduct`` of ``csrc/cpu/products.cpp``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ('channels', 'outputs', 'groups')),
        *((name, _PAIR) for name in ('kernel', 'stride', 'padding', 'dilation')),
        *((name, ctypes.c_int32) for name in ('linear', 'src_type', 'dst_type', 'activation')),
        ('alpha', ctypes.c_float),
        ('has_sum', ctypes.c_int32),
        ('sum_type', ctypes.c_int32),
        ('sum_scale', ctypes.c_float),
        ('sum_last', ctypes.c_int32),
    ]


class Product:
    """One convolution or linear layer with its weights packed for this processor.

    Shapes are compiled on first use; the last 32 are kept. Several threads may call one object.

    Args:
        node: The layer.
        weight: int8 codes, ``(K, C / groups, R, S)`` or ``(K, C)``.
        multiplier, bias: Float32 ``(K,)`` of the epilogue.
        x_signed: Whether the input codes are int8, else uint8.
        residual_type: Type of the codes added, or None.

    Raises:
        ClipQError: if the operators cannot run here.
    """

    def __init__(
        self,
        node: ir.Product,
        weight: Tensor,
        multiplier: Tensor,
        bias: Tensor,
        x_signed: bool,
        residual_type: ir.TensorType | None = None,
    ) -> None:
        self._library, self.node = library(), node
        self.dtype = fp.code_dtype(node.type.signed) if node.type.is_codes else torch.float32
        # Powers of two scale the whole epilogue exactly, so that it ends in codes by itself.
        step = node.type.step_exponent if node.type.is_codes else 0
        scale = math.ldexp(1.0, -step)
        self.kernel = tuple(weight.shape[2:])
        self.outputs = weight.shape[0]
        spec = _Spec(
            channels=weight.shape[1] * getattr(node, 'groups', 1),
            outputs=self.outputs,
            groups=getattr(node, 'groups', 1),
            linear=isinstance(node, ir.Linear),
            src_type=_TYPES[fp.code_dtype(x_signed)],
            dst_type=_TYPES[self.dtype],
            activation={'identity': 0, 'relu6': 2}.get(node.activation, 1),
            alpha=6 * scale if node.activation == 'relu6' else node.slope,
        )
        if node.activation == 'relu':
            spec.alpha = 0.0
        if isinstance(node, ir.Conv):
            spec.kernel, spec.stride = _PAIR(*self.kernel), _PAIR(*node.stride)
            spec.padding, spec.dilation = _PAIR(*node.padding), _PAIR(*node.dilation)
        if residual_type is not None:
            spec.has_sum, spec.sum_last = True, node.residual_last
            spec.sum_type = _TYPES[fp.code_dtype(residual_type.signed)]
            spec.sum_scale = math.ldexp(1.0, residual_type.step_exponent - step)
            if not node.type.is_codes:  # the buffer then holds values instead of codes
                spec.sum_type, spec.sum_scale = _TYPES[torch.float32], 1.0
        constants = weight.contiguous(), (multiplier * scale).contiguous(), (bias * scale)
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        self._handle = self._library.clipq_product_create(
            ctypes.byref(spec), *(t.data_ptr() for t in constants), error, _ERROR_SIZE
        )
        if not self._handle:
            raise ClipQError(f'{node.name}: {error.value.decode()}')
        weakref.finalize(self, self._library.clipq_product_destroy, self._handle)

    def result_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the result for input codes ``(N, C, H, W)`` or ``(N, C)``."""
        if isinstance(self.node, ir.Linear):
            return (*x.shape[:-1], self.outputs)
        sides = zip(
            x.shape[2:], self.kernel, self.node.stride, self.node.padding, self.node.dilation,
            strict=True,
        )  # fmt: skip
        return (len(x), self.outputs, *((n + 2 * p - d * (k - 1) - 1) // s + 1
                                        for n, k, s, p, d in sides))  # fmt: skip

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Codes, or float32 values, of the layer with channels last in memory.

        Args:
            x: Input codes.
            residual: Codes to add, of the result's shape; float32 values if the result is float32.
        """
        shape = self.result_shape(x)
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        x = x.contiguous(memory_format=layout)
        if residual is None:
            result = torch.empty(shape, dtype=self.dtype, memory_format=layout)
        else:
            result = torch.empty(shape, dtype=residual.dtype, memory_format=layout)
            result = result.copy_(residual).view(self.dtype)
        if not result.numel():
            return result
        rows = (-1, x.shape[-1]) if x.dim() != 4 else x.shape
        src = (ctypes.c_int64 * 4)(*x.view(rows).shape)
        dst = (ctypes.c_int64 * 4)(
            *(result if x.dim() == 4 else result.view(-1, self.outputs)).shape
        )
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        axes = 4 if x.dim() == 4 else 2
        done = self._library.clipq_product_run(
            self._handle, src, dst, axes, x.data_ptr(), result.data_ptr(), error, _ERROR_SIZE
        )
        if not done:
            raise ClipQError(f'{self.node.name}: {error.value.decode()}')
        return result
