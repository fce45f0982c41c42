"""Signal and noise of every int8 layer, and what its ranges clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import fixed_point as fp
from ..apis.quantize_model import preprocessed
from ..backends import Backend
from ..graph import ir
from ..lowering.capture import evaluating
from .int8_layers import Call, Forward, Int8Layers


@dataclass
class Ratio:
    """Energies of a signal and of its noise, summed up over tensors."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        """Add the energies of ``wanted`` and of what ``found`` differs by."""
        self.signal += float(wanted.double().square().sum())
        self.noise += float((found.double() - wanted.double()).square().sum())

    @property
    def decibels(self) -> float:
        """Ten times the decimal logarithm of signal over noise; NaN where nothing was added."""
        if not self.signal and not self.noise:
            return math.nan
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass
class Share:
    """How many of how many values."""

    part: int = 0
    whole: int = 0

    def add(self, chosen: Tensor) -> None:
        self.part += int(chosen.sum())
        self.whole += chosen.numel()

    @property
    def share(self) -> float:
        """NaN of nothing."""
        return self.part / self.whole if self.whole else math.nan


class LayerSignals:
    """What :func:`measure_signals` sums up for one layer.

    Attributes:
        weight: Float weights against the values of their codes.
        output: Results behind the norm and before the activation: the float layer against the int8
            one on the same float inputs.
        read: What the layer reads in the float detector against what it reads in the running int8
            detector, in the graph of backbone, neck and dense head; empty elsewhere, where both
            have other regions.
        clipped_weights: Weights that saturate.
        clipped_inputs: Inputs that saturate.
    """

    def __init__(self) -> None:
        self.weight, self.output, self.read = Ratio(), Ratio(), Ratio()
        self.clipped_weights, self.clipped_inputs = Share(), Share()


def saturates(x: Tensor, exponent: int | Tensor, signed: bool = True, offset: int = 0) -> Tensor:
    """Which values of ``x`` lie beyond the outermost codes by more than rounding explains.

    Args:
        x: Float tensor.
        exponent: Range exponent, or int32 exponents of the first axis.
        signed: Whether the codes are int8, else uint8.
        offset: Code that stands for zero.
    """
    low, high = fp.code_range(signed)
    if isinstance(exponent, Tensor):
        step = fp.power_of_two(fp.step_exponent(exponent, signed))
        steps = x.flatten(1) / step[:, None]
    else:
        steps = x / fp.step(exponent, signed)
    return (steps > high - offset + 0.5) | (steps < low - offset - 0.5)


@torch.no_grad()
def measure_signals(
    layers: Int8Layers, batches: Iterable[Any], backend: Backend | None = None
) -> dict[str, LayerSignals]:
    """Run the float detector over images, and each of its int8 layers beside its float twin.

    Args:
        layers: The layers; the detector's modes and methods are afterwards as they were.
        batches: What a dataloader gives.
        backend: Executes the int8 graph of backbone, neck and dense head on the same images.
    """
    found = {name: LayerSignals() for name in layers.names}
    values = {name: layers.int8_weight(name) for name in layers.names}
    for name, signals in found.items():
        weight, node = layers.float_weight(name), layers.calls(name)[0].node
        signals.weight.add(weight, values[name])
        if isinstance(node, ir.ConvTranspose):  # output channels first, as its exponents
            weight = weight.unflatten(0, (node.groups, -1)).transpose(1, 2).flatten(0, 1)
        signals.clipped_weights.add(saturates(weight, layers.codes(name)[1]))
    codes_read: Mapping[str, Tensor] = {}

    def watch(name: str, call: Call, forward: Forward, x: Tensor, *others: Any) -> Tensor:
        result = forward(x, *others)
        if not x.numel():
            return result
        signals, kind = found[name], call.kind
        signals.clipped_inputs.add(saturates(x, call.exponent, kind.signed, kind.offset))
        int8 = layers.product(name, values[name], call, forward, x, *others)
        bias = layers.layer(name).bias
        signals.output.add(call.normed(result, bias), call.normed(int8, bias))
        seen = codes_read.get(call.node.x) if call.dense else None
        if seen is not None and seen.shape == x.shape:
            signals.read.add(x, fp.decode(seen, call.exponent, offset=kind.offset).to(x))
        return result

    shown = tqdm(batches, 'signal and noise', unit='batch')
    for images, samples in preprocessed(layers.model, shown):
        if backend is not None:
            codes_read = backend.codes(images)
        with evaluating(layers.model), layers.watching(watch):
            layers.model.predict(images, samples)
    return found
