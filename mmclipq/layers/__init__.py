"""Clipped layers, swapped in for the stock ones."""

from .clip_conv import ClipConv, ClipConvAdaptive, ClipConvTranspose, ClipConvWS
from .clip_linear import ClipLinear, ClipProjection
from .clip_mixin import ClipMixin

__all__ = [
    'ClipConv',
    'ClipConvAdaptive',
    'ClipConvTranspose',
    'ClipConvWS',
    'ClipLinear',
    'ClipMixin',
    'ClipProjection',
]
