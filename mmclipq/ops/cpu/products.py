"""Int8 convolutions and linear layers in C++ through oneDNN, bit for bit those of the reference."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import fixed_point as fp
from ...errors import ClipQError
from ...graph import ir
from ..layer import Layer
from ..program import ERROR_SIZE
from ..steps import PAIR
from .library import library

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


class Product(Layer):
    """One convolution or linear layer with its weights packed for this processor.

    Several threads may use one object.

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
        super().__init__(node, weight, multiplier, bias, residual_type)
        self._library = library()
        spec = _Spec(
            channels=weight.shape[1] * getattr(node, 'groups', 1),
            outputs=self.outputs,
            groups=getattr(node, 'groups', 1),
            linear=isinstance(node, ir.Linear),
            src_type=_TYPES[fp.code_dtype(x_signed)],
            dst_type=_TYPES[self.dtype],
            activation=self.activation,
            alpha=self.alpha,
        )
        if isinstance(node, ir.Conv):
            spec.kernel, spec.stride = PAIR(*self.kernel), PAIR(*node.stride)
            spec.padding, spec.dilation = PAIR(*node.padding), PAIR(*node.dilation)
        if residual_type is not None:
            spec.has_sum, spec.sum_last = True, node.residual_last
            spec.sum_type = _TYPES[fp.code_dtype(residual_type.signed)]
            spec.sum_scale = self.residual_scale
            if not node.type.is_codes:  # the buffer then holds values instead of codes
                spec.sum_type, spec.sum_scale = _TYPES[torch.float32], 1.0
        self._weight = weight.contiguous()  # stays, because shapes are packed from it later
        error = ctypes.create_string_buffer(ERROR_SIZE)
        handle = self._library.clipq_product_create(
            ctypes.byref(spec),
            *(t.data_ptr() for t in (self._weight, self.multiplier, self.bias)),
            error,
            ERROR_SIZE,
        )
        if not handle:
            raise ClipQError(f'{node.name}: {error.value.decode()}')
        self._handle = handle
        weakref.finalize(self, self._library.clipq_product_destroy, handle)

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
