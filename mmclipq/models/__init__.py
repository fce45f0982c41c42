"""Model parts in MMDetection's registries."""

from ..layers import ClipConv, ClipLinear
from .losses import LqLoss

__all__ = ['ClipConv', 'ClipLinear', 'LqLoss']
