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
    """How far real statistics are from the running ones, medians over channels.

    Attributes:
        shift: Distance of the means in running standard deviations.
        ratio: Factor between the variances, at least 1.
        divergence: Kullback-Leibler divergence in nats between two normal distributions of these
            means and variances.
    """

    shift: float
    ratio: float
    divergence: float


def divergence(real: Statistics, assumed: Statistics, eps: float) -> Tensor:
    """Kullback-Leibler divergence of each channel; ``eps`` joins the variances as in the layer."""
    ratio = (real.var + eps) / (assumed.var + eps)
    shift = (real.mean - assumed.mean).square() / (assumed.var + eps)
    return (ratio + shift - 1 - ratio.log()) / 2


def misfit(norm: _BatchNorm, real: Statistics) -> Misfit:
    """How the running statistics of ``norm`` fit the real ones of its input."""
    assumed = running(norm)
    deviation = (assumed.var + norm.eps).sqrt()
    ratio = ((real.var + norm.eps) / (assumed.var + norm.eps)).log().abs()
    return Misfit(
        float(((real.mean - assumed.mean).abs() / deviation).median()),
        float(ratio.median().exp()),
        float(divergence(real, assumed, norm.eps).median()),
    )


def running(norm: _BatchNorm) -> Statistics:
    """The statistics that the checkpoint holds."""
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

    def statistics(self, name: str, weights: Tensor | None = None) -> Statistics:
        """Of one norm, each batch counting 1 or its ``weights``."""
        means, variances = [], []
        for moments in self._moments[name].values():
            stacked = torch.stack(moments)
            if weights is None:
                mean, square = stacked.mean(0)
            else:
                share = weights[: len(stacked)] / weights[: len(stacked)].sum()
                mean, square = torch.einsum('n,nkc->kc', share, stacked)
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
    states = [(norm, norm.training, norm.track_running_stats) for norm in norms.values()]
    buffers = [(norm, norm.running_mean, norm.running_var) for norm in norms.values()]
    try:
        for norm, _, _ in states:
            # Without buffers a norm takes its batch's statistics in evaluation, too.
            norm.running_mean = norm.running_var = None
            norm.eval()
        yield
    finally:
        for norm, mean, var in buffers:
            norm.running_mean, norm.running_var = mean, var
        for norm, training, _ in states:
            norm.training = training
