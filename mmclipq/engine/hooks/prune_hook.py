"""Sets the weights of least magnitude to zero while a detector trains."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ...errors import ClipQError
from ...prepare import clip_layers
from ...registry import HOOKS
from .clipq_hook import unwrapped


def least_kept(weight: Tensor, share: float) -> Tensor:
    """Which weights stay when ``share`` of them are set to zero, bool of their shape.

    Those go that are least beside the root mean square of their output channel; zeros go first.
    """
    rows = weight.detach().flatten(1)
    beside = rows.abs() / rows.square().mean(1, keepdim=True).sqrt().clamp_(min=1e-30)
    order = beside.flatten().argsort(stable=True)
    kept = torch.ones_like(order, dtype=torch.bool)
    kept[order[: round(share * len(order))]] = False
    return kept.view_as(weight)


@HOOKS.register_module()
class MagnitudePruningHook(Hook):
    """Sets a growing share of each layer's weights to zero, and keeps them there.

    The share grows fast at first and then slower (Zhu and Gupta 2017, arXiv:1710.01878). Which
    weights are zero is seen from the weights themselves, so a training that is resumed goes on.

    Args:
        share: Of the weights of a layer in the end.
        until: Part of the training over which the share grows.
        interval: Iterations between two choices.
        least: Layers with fewer weights stay whole, and so do those whose output channels have
            fewer than 32.

    Raises:
        ClipQError: if a share is not one, or an interval not from 1 up.
    """

    # After the optimizer's step, before checkpoints are written.
    priority = 'VERY_HIGH'

    def __init__(
        self, share: float = 0.5, until: float = 0.5, interval: int = 10, least: int = 1024
    ) -> None:
        if not 0 <= share < 1 or not 0 < until <= 1 or interval < 1:
            raise ClipQError(
                f'MagnitudePruningHook: found share={share}, until={until}, interval={interval}, '
                'wanted a share from 0 to below 1, a part above 0 up to 1, and an interval from 1'
            )
        self.share, self.until, self.interval, self.least = share, until, interval, least
        self._kept: dict[str, Tensor] = {}

    def share_at(self, done: float) -> float:
        """Share of zeros when ``done``, a part of the training, is over."""
        return self.share * (1 - (1 - min(1.0, done / self.until)) ** 3)

    def _layers(self, model: nn.Module) -> dict[str, nn.Parameter]:
        found = {}
        for name, layer in clip_layers(model):
            weight = layer._parameters.get('weight')
            if weight is None or not weight.requires_grad or weight.numel() < self.least:
                continue
            if weight[0].numel() >= 32:
                found[name] = weight
        return found

    @torch.no_grad()
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        done = (runner.iter + 1) / runner.max_iters
        choose = runner.iter % self.interval == 0 and done <= self.until + 1 / runner.max_iters
        for name, weight in self._layers(unwrapped(runner.model)).items():
            if choose:
                self._kept[name] = least_kept(weight, self.share_at(done))
            elif name not in self._kept:
                self._kept[name] = weight != 0
            else:
                continue
            weight.mul_(self._kept[name])

    @torch.no_grad()
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for name, weight in self._layers(unwrapped(runner.model)).items():
            weight.mul_(self._kept[name])
