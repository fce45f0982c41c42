from .lq_loss import LqLoss

__all__ = ['LqLoss']
