"""Model parts in MMDetection's registries."""

from ..layers import ClipConv, ClipLinear
from .losses import BitsLoss, LqLoss
from .narrow import narrow_detector
from .roi_heads import SVDBBoxHead

__all__ = ['BitsLoss', 'ClipConv', 'ClipLinear', 'LqLoss', 'SVDBBoxHead', 'narrow_detector']
