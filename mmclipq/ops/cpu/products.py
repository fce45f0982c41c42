"""Int8 convolutions and linear layers in C++ through oneDNN, bit for bit those of the reference."""

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
from ..steps import FLOAT, INT, LONG, Window, fields
from .library import library


class _Spec(ctypes.Structure):
    """``ClipqProduct`` of ``csrc/cpu/products.cpp``."""

    _fields_ = fields(
        window=Window,
        channels__outputs__groups=LONG,
        linear__src_type__dst_type__activation=INT,
        alpha=FLOAT,
        has_sum__sum_type=INT,
        sum_scale=FLOAT,
        sum_last=INT,
    )


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
            src_type=TYPES[fp.code_dtype(self.x_signed)],
            dst_type=TYPES[self.dtype],
            activation=self.activation,
            alpha=self.alpha,
        )
        if self.residual_type is not None:
            spec.has_sum, spec.sum_last = True, node.residual_last
            spec.sum_type = TYPES[fp.code_dtype(self.residual_type.signed)]
            spec.sum_scale = self.residual_scale
            if not node.type.is_codes:  # the buffer then holds values instead of codes
                spec.sum_type, spec.sum_scale = TYPES[torch.float32], 1.0
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
