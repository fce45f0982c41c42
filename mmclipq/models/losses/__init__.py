from .bits_loss import BitsLoss
from .lq_loss import LqLoss

__all__ = ['BitsLoss', 'LqLoss']
