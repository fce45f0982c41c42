"""Int8 convolutions and linear layers in C++ through oneDNN, bit for bit those of the reference."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import fixed_point as fp
from ..errors import ClipQError
from ..graph import ir
from .library import ERROR_SIZE, library
from .steps import PAIR

_TYPES = {torch.int8: 0, torch.uint8: 1, torch.float32: 2}


class _Spec(ctypes.Structure):
    """``ClipqProduct`` of ``csrc/cpu/products.cpp``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ('channels', 'outputs', 'groups')),
        *((name, PAIR) for name in ('kernel', 'stride', 'padding', 'dilation')),
        *((name, ctypes.c_int32) for name in ('linear', 'src_type', 'dst_type', 'activation')),
        ('alpha', ctypes.c_float),
        ('has_sum', ctypes.c_int32),
        ('sum_type', ctypes.c_int32),
        ('sum_scale', ctypes.c_float),
        ('sum_last', ctypes.c_int32),
    ]


class CompiledProduct:
    """A layer at one shape.

    Attributes:
        handle: What its step points to.
        scratchpad: Bytes of memory that each run needs for itself.
    """

    def __init__(self, handle: int, scratchpad: int) -> None:
        self.handle, self.scratchpad = handle, scratchpad
        weakref.finalize(self, library().clipq_compiled_destroy, handle)


class Product:
    """One convolution or linear layer with its weights packed for this processor.

    Several threads may use one object.

    Args:
        node: The layer.
        weight: int8 codes, ``(K, C / groups, R, S)`` or ``(K, C)``.
        multiplier, bias: Float32 ``(K,)`` of the epilogue.
        x_signed: Whether the input codes are int8, else uint8.
        residual_type: Type of the codes added, or None.

    Attributes:
        dtype: Of the result.

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
            spec.kernel, spec.stride = PAIR(*self.kernel), PAIR(*node.stride)
            spec.padding, spec.dilation = PAIR(*node.padding), PAIR(*node.dilation)
        if residual_type is not None:
            spec.has_sum, spec.sum_last = True, node.residual_last
            spec.sum_type = _TYPES[fp.code_dtype(residual_type.signed)]
            spec.sum_scale = math.ldexp(1.0, residual_type.step_exponent - step)
            if not node.type.is_codes:  # the buffer then holds values instead of codes
                spec.sum_type, spec.sum_scale = _TYPES[torch.float32], 1.0
        self._weight = weight.contiguous()  # stays, because shapes are packed from it later
        constants = (multiplier * scale).contiguous(), (bias * scale).contiguous()
        error = ctypes.create_string_buffer(ERROR_SIZE)
        handle = self._library.clipq_product_create(
            ctypes.byref(spec),
            *(t.data_ptr() for t in (self._weight, *constants)),
            error,
            ERROR_SIZE,
        )
        if not handle:
            raise ClipQError(f'{node.name}: {error.value.decode()}')
        self._handle = handle
        weakref.finalize(self, self._library.clipq_product_destroy, handle)

    def result_shape(self, x: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result for input codes of shape ``(N, C, H, W)`` or ``(..., C)``.

        Raises:
            ClipQError: if the input is smaller than the kernel.
        """
        if isinstance(self.node, ir.Linear):
            return (*x[:-1], self.outputs)
        sides = zip(
            x[2:], self.kernel, self.node.stride, self.node.padding, self.node.dilation,
            strict=True,
        )  # fmt: skip
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        if rows < 1 or columns < 1:
            raise ClipQError(
                f'{self.node.name}: found an input of {x[2]}x{x[3]}, wanted one that its kernel '
                'fits into; use larger images'
            )
        return (x[0], self.outputs, rows, columns)

    def compile(self, shape: Sequence[int], freed: bool = False) -> CompiledProduct:
        """The layer for input codes of ``shape``, on as many threads as OpenMP has now.

        Args:
            shape: ``(N, C, H, W)``, or ``(..., C)`` of a linear layer.
            freed: Whether all memory must be freed with the result. oneDNN 3.2 keeps the code of
                its fastest implementations, up to 1 MB each, until the process ends.

        Raises:
            ClipQError: if oneDNN refuses the layer.
        """
        result = self.result_shape(shape)
        if isinstance(self.node, ir.Linear):
            rows = torch.Size(shape[:-1]).numel()
            shape, result = (rows, shape[-1]), (rows, self.outputs)
        axes = len(shape)
        kind = ctypes.c_int64 * axes
        scratchpad = ctypes.c_int64()
        error = ctypes.create_string_buffer(ERROR_SIZE)
        handle = self._library.clipq_product_compile(
            self._handle, kind(*shape), kind(*result), axes, freed, ctypes.byref(scratchpad),
            error, ERROR_SIZE,
        )  # fmt: skip
        if not handle:
            raise ClipQError(f'{self.node.name}: {error.value.decode()}')
        return CompiledProduct(handle, scratchpad.value)
