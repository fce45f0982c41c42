"""Layers that clip their inputs and weights to power-of-two ranges while they train."""

from .clip_conv import ClipConv
from .clip_linear import ClipLinear
from .clip_mixin import ClipMixin

__all__ = ['ClipConv', 'ClipLinear', 'ClipMixin']
