"""Batch norm's running statistics beside those of what its layer really gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Statistics:
    """Mean and variance of each channel, float64 ``(C,)``."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Misfit:
    """How far real statistics are from those that are assumed, over channels.

    Attributes:
        shift: Distance of the means in assumed standard deviations, median.
        ratio: Factor between the variances, at least 1, median.
        median, mean: Kullback-Leibler divergence in nats between two normal distributions of these
            means and variances; for the mean no channel counts more than :data:`MOST`.
    """

    shift: float
    ratio: float
    median: float
    mean: float


MOST = 5.0
"""Divergence in nats beyond which a channel is simply different."""


def divergence(real: Statistics, assumed: Statistics, eps: float) -> Tensor:
    """Kullback-Leibler divergence of each channel; ``eps`` joins the variances as in the layer."""
    ratio = (real.var + eps) / (assumed.var + eps)
    shift = (real.mean - assumed.mean).square() / (assumed.var + eps)
    return (ratio + shift - 1 - ratio.log()) / 2


def misfit(real: Statistics, assumed: Statistics, eps: float) -> Misfit:
    """How the assumed statistics fit the real ones."""
    ratio = ((real.var + eps) / (assumed.var + eps)).log().abs()
    shift = (real.mean - assumed.mean).abs() / (assumed.var + eps).sqrt()
    apart = divergence(real, assumed, eps)
    return Misfit(
        float(shift.median()),
        float(ratio.median().exp()),
        float(apart.median()),
        float(apart.nan_to_num(MOST, MOST).clamp(max=MOST).mean()),
    )


def running(norm: _BatchNorm) -> Statistics:
    """The statistics that the checkpoint holds, of one of :func:`tracked_norms`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Statistics(norm.running_mean.double().cpu(), norm.running_var.double().cpu())


def tracked_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


class NormRecorder:
    """Collects the moments of what reaches each batch norm, call by call.

    Every image counts the same, whatever its size. A norm that runs several times for an image, as
    one shared by the levels of a pyramid, updates its running statistics once for each; so its
    statistics here are those of each call, averaged.
    """

    def __init__(self) -> None:
        self._moments: dict[str, dict[int, list[Tensor]]] = {}
        self._calls: dict[str, int] = {}

    def next_batch(self) -> None:
        """Say that the detector is about to run again."""
        self._calls.clear()

    def add(self, name: str, x: Tensor) -> None:
        """Add the input ``(N, C, ...)`` of a norm."""
        call = self._calls[name] = self._calls.get(name, -1) + 1
        rows = x.detach().double().transpose(0, 1).flatten(1)
        moments = torch.stack([rows.mean(1), rows.square().mean(1)]).cpu()
        self._moments.setdefault(name, {}).setdefault(call, []).append(moments)

    @property
    def names(self) -> list[str]:
        """The norms that ran, in the order of their first call."""
        return list(self._moments)

    def statistics(self, name: str) -> Statistics:
        """Of one norm, over all batches."""
        means, variances = [], []
        for moments in self._moments[name].values():
            mean, square = torch.stack(moments).mean(0)
            means.append(mean)
            variances.append((square - mean.square()).clamp(min=0))
        return Statistics(torch.stack(means).mean(0), torch.stack(variances).mean(0))


@contextmanager
def recording(
    norms: Mapping[str, _BatchNorm], watch: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, ``watch`` sees the name of each norm that runs, and its input."""
    handles = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))
        for name, norm in norms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def own_statistics(norms: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """Inside, each norm uses its batch's statistics, as in training; the stored ones stay.

    So a layer whose statistics are wrong does not spoil what the layers behind it read.
    """
    buffers = [(norm, norm.running_mean, norm.running_var) for norm in norms.values()]
    try:
        for norm, _, _ in buffers:
            # Without buffers a norm takes its batch's statistics in evaluation, too.
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, var in buffers:
            norm.running_mean, norm.running_var = mean, var


def frozen_norms(model: nn.Module) -> set[str]:
    """Norms whose statistics training does not touch, as ``norm_eval=True`` has it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        return {name for name, norm in tracked_norms(model).items() if not norm.training}
    finally:
        for module, training in modes:
            module.training = training
