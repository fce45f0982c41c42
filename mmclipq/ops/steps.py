"""The steps of a program as C++ reads them: mirrors of the structures in ``csrc/common/steps.h``.

Places and numbers of 8 bytes stand first, which keeps the two languages' layouts the same.
"""

from __future__ import annotations

import ctypes

PAIR = ctypes.c_int64 * 2
INT, LONG, FLOAT, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def fields(**types: type) -> list[tuple[str, type]]:
    """Fields of a structure; a name may stand for several, separated by underscores twice."""
    return [(name, kind) for names, kind in types.items() for name in names.split('__')]


class Place(ctypes.Structure):
    """Where a tensor starts: number of the buffer and bytes before it; -1 is no tensor."""

    _fields_ = fields(buffer__offset=LONG)


class Rows(ctypes.Structure):
    """How a result lies: ``rows`` runs of ``channels`` items that start ``stride`` items apart."""

    _fields_ = fields(rows__channels__stride=LONG)


class Maps(ctypes.Structure):
    """Images that a step reads, and the rows and columns that it writes of each."""

    _fields_ = fields(images__height__width__channels__rows__columns=LONG)


class Window(ctypes.Structure):
    """Windows of a convolution or of pooling, each pair for rows and columns."""

    _fields_ = fields(kernel__step__padding__dilation=PAIR)


class ProductStep(ctypes.Structure):
    """A convolution or linear layer at one shape, on the CPU."""

    _fields_ = fields(compiled=POINTER, src__dst__scratchpad__residual=Place, dst_stride=LONG)


class CudaProductStep(ctypes.Structure):
    """The same on a GPU: ``ClipqProductStep`` of ``csrc/cuda/product.cuh``."""

    _anonymous_ = ('maps', 'window')
    _fields_ = fields(
        maps=Maps,
        window=Window,
        src__dst__residual__sums__counters=Place,
        weight__multiplier__bias__row_of__column_of__outside__correction=POINTER,
        outputs__depth__groups=LONG,
        src_stride__dst_stride__residual_stride__residual_height__residual_width=LONG,
        src_signed__dst_kind__activation__residual_signed__residual_order=INT,
        wide_dst__wide_residual__tile__splits__src_offset__residual_offset__dst_offset=INT,
        alpha__residual_scale__scale=FLOAT,
    )


class Sum(ctypes.Structure):
    """Codes of the activated sum of two code tensors, or of one alone in another range."""

    _fields_ = fields(
        a__b__dst=Place,
        rows=Rows,
        a_signed__b_signed__dst_signed__activation=INT,
        a_offset__b_offset__dst_offset=INT,
        a_step__b_step__scale__alpha=FLOAT,
    )


class Quantize(ctypes.Structure):
    """Codes of float32 values that lie as planes or with channels last."""

    _fields_ = fields(
        src__dst=Place, rows=Rows, pixels=LONG, planes__dst_signed__dst_offset=INT, scale=FLOAT
    )


class Dequantize(ctypes.Structure):
    """Float32 values of codes."""

    _fields_ = fields(src__dst=Place, count=LONG, src_signed__src_offset=INT, step=FLOAT)


class Copy(ctypes.Structure):
    """The same codes at another place."""

    _fields_ = fields(src__dst=Place, rows=Rows)


class MaxPool(ctypes.Structure):
    """Largest code of each window."""

    _anonymous_ = ('maps', 'window')
    _fields_ = fields(maps=Maps, window=Window, src__dst=Place, stride=LONG, is_signed=INT)


class Upsample(ctypes.Structure):
    """Rows and columns of the source, by their numbers."""

    _anonymous_ = ('maps',)
    _fields_ = fields(maps=Maps, src__dst=Place, stride=LONG, row_of__column_of=POINTER)


class Flatten(ctypes.Structure):
    """Channels last to channels first."""

    _fields_ = fields(src__dst=Place, images__pixels__channels=LONG)


class Level(ctypes.Structure):
    """One level that RoIAlign reads."""

    _fields_ = fields(codes=Place, height__width=LONG, scale=FLOAT)


class RoIAlign(ctypes.Structure):
    """Averages of bilinear samples of codes in regions."""

    _fields_ = fields(
        rois__dst=Place,
        level=ctypes.POINTER(Level),
        count__levels__channels__rows__columns__sampling_ratio=LONG,
        aligned__src_signed__dst_signed__src_offset__dst_offset=INT,
        finest_scale__scale=FLOAT,
    )


class Lookup(ctypes.Structure):
    """What a table says of each code, in ``size`` bytes."""

    _fields_ = fields(src__dst=Place, rows=Rows, table=POINTER, size=LONG)


class Pairwise(ctypes.Structure):
    """Sum or product of two tensors whose axes broadcast."""

    _fields_ = fields(
        a__b__dst=Place,
        images__rows__columns__channels__stride=LONG,
        a_strides__b_strides=ctypes.c_int64 * 4,
        product__a_signed__b_signed__dst_signed__activation=INT,
        a_offset__b_offset__dst_offset=INT,
        a_step__b_step__scale__alpha=FLOAT,
    )


class AvgPool(ctypes.Structure):
    """Average of each window."""

    _anonymous_ = ('maps', 'window')
    _fields_ = fields(
        maps=Maps,
        window=Window,
        src__dst=Place,
        stride=LONG,
        inverse=POINTER,
        src_signed__dst_signed__src_offset__dst_offset=INT,
        scale=FLOAT,
    )


class Affine(ctypes.Structure):
    """One multiplication and one addition for each channel, given or from statistics."""

    _fields_ = fields(
        src__dst=Place,
        images__pixels__channels__stride__groups=LONG,
        multiplier__bias=POINTER,
        step__eps=ctypes.c_double,
        statistics__activation=INT,
        src_signed__dst_signed__src_offset__dst_offset__dst_float=INT,
        scale__alpha=FLOAT,
    )


GIVEN, OF_GROUPS, OF_PIXELS = range(3)
"""Where the factors of :class:`Affine` come from."""

KINDS = (
    ProductStep, Sum, Quantize, Dequantize, Copy, MaxPool, Upsample, Flatten, RoIAlign, Lookup,
    Pairwise, AvgPool, Affine,
)  # fmt: skip
"""In the order of ``clipq_dispatch``."""


class Step(ctypes.Structure):
    """One step of a program: its kind and its structure."""

    _fields_ = fields(kind=LONG, step=POINTER)


def number_of(step: ctypes.Structure) -> int:
    """Number of the kind of ``step`` in C++; each device has one kind of product."""
    return 0 if isinstance(step, CudaProductStep) else KINDS.index(type(step))
