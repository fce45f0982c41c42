"""What losses of weights have in common: their share of the whole, which may grow at first."""

from __future__ import annotations

from torch import nn


class WarmedLoss(nn.Module):
    """A loss whose weight grows linearly from zero.

    Args:
        loss_weight: Its weight in the end.
        warmup_iters: Iterations over which it grows.
    """

    def __init__(self, loss_weight: float, warmup_iters: int) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.warmup_iters = warmup_iters

    def factor(self, iteration: int) -> float:
        """``loss_weight`` at the 0-based ``iteration``, warm-up included."""
        if iteration >= self.warmup_iters:
            return self.loss_weight
        return self.loss_weight * (iteration + 1) / (self.warmup_iters + 1)
