"""Model parts in MMDetection's registries."""

from ..layers import ClipConv, ClipLinear
from .losses import LqLoss
from .roi_heads import SVDBBoxHead

__all__ = ['ClipConv', 'ClipLinear', 'LqLoss', 'SVDBBoxHead']
