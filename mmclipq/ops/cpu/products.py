"""Int8 convolutions and linear layers in C++, bit for bit those of the reference."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import fixed_point as fp
from ...errors import ClipQError
from ...graph import ir
from ..layer import TYPES, Layer
from ..program import ERROR_SIZE
from ..steps import FLOAT, INT, LONG, PAIR, Window, fields
from .library import library


class _Spec(ctypes.Structure):
    """``ClipqProduct`` of ``csrc/cpu/product.h``."""

    _fields_ = fields(
        window=Window,
        channels__outputs__groups=LONG,
        linear__src_type__dst_type__src_offset__dst_offset__activation=INT,
        alpha__scale=FLOAT,
        residual_order__residual_type__residual_offset=INT,
        residual_scale=FLOAT,
    )


class CompiledProduct:
    """A layer at one shape.

    Attributes:
        handle: What its step points to.
        scratchpad: Bytes of memory that each run needs for itself.
        holds_residual: Whether the residual must lie where the result will; else the step reads it.
    """

    def __init__(self, handle: int, scratchpad: int, holds_residual: bool) -> None:
        self.handle, self.scratchpad, self.holds_residual = handle, scratchpad, holds_residual
        weakref.finalize(self, library().clipq_compiled_destroy, handle)


class Product(Layer):
    """One convolution or linear layer with its weights packed for this processor.

    Several threads may use one object.

    Attributes:
        direct: Whether kernels of our own run it, which write into the channels of larger tensors.

    Args:
        *args: Those of :class:`Layer`.

    Raises:
        ClipQError: if the operators cannot run here.
    """

    def __init__(self, node: ir.Product, weight: Tensor, *args: Any) -> None:
        super().__init__(node, weight, *args)
        self._library = library()
        spec = _Spec(
            window=self.window,
            channels=weight.shape[1] * self.groups,
            outputs=self.outputs,
            groups=self.groups,
            linear=isinstance(node, ir.Linear),
            src_type=TYPES[fp.code_dtype(self.x_type.signed)],
            src_offset=self.x_type.offset,
            dst_type=TYPES[self.dtype],
            dst_offset=node.type.offset,
            activation=self.activation,
            alpha=self.alpha,
            scale=self.scale,
            residual_scale=self.residual_scale,
        )
        if self.residual_type is not None:
            spec.residual_order = 2 if node.residual_last else 1
            spec.residual_type = TYPES[fp.code_dtype(self.residual_type.signed)]
            spec.residual_offset = self.residual_type.offset
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
        self.direct = bool(self._library.clipq_product_is_direct(handle))
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
        result, before = self.result_shape(shape), [0, 0]
        if isinstance(self.node, ir.Conv):
            before = [side for side, _ in self.node.pads(shape[2:], self.kernel)]
        else:
            rows = torch.Size(shape[:-1]).numel()
            shape, result = (rows, shape[-1]), (rows, self.outputs)
        axes = len(shape)
        kind = ctypes.c_int64 * axes
        scratchpad, holds_residual = ctypes.c_int64(), ctypes.c_int32()
        error = ctypes.create_string_buffer(ERROR_SIZE)
        handle = self._library.clipq_product_compile(
            self._handle, kind(*shape), kind(*result), axes, PAIR(*before), freed,
            ctypes.byref(scratchpad), ctypes.byref(holds_residual), error, ERROR_SIZE,
        )  # fmt: skip
        if not handle:
            raise ClipQError(f'{self.node.name}: {error.value.decode()}')
        return CompiledProduct(handle, scratchpad.value, bool(holds_residual))
