"""Bytes and milliseconds of every int8 layer beside its float twin."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..backends import Backend
from ..benchmark.node_times import layer_times, node_times
from ..detector import Int8Parts
from ..lowering.capture import evaluating
from .images import AnalysedImages
from .int8_layers import Int8Layers

ROUNDS = 5
"""Predictions that are timed."""


@dataclass(frozen=True)
class Cost:
    """What a layer costs; sizes in bytes without compression, times in milliseconds.

    Attributes:
        float_bytes: Weights and bias in float32.
        int8_bytes: Weight codes, their exponents, multipliers and biases.
        float_ms: The convolution or linear layer in PyTorch, without norm and activation.
        int8_ms: The same with norm, activation, residual and rounding.
    """

    float_bytes: int
    int8_bytes: int
    float_ms: float
    int8_ms: float


def executors(detector: Any, parts: Int8Parts) -> list[Backend]:
    """What executes each of ``parts.graphs`` in an :class:`Int8Detector`, in their order."""
    dense = [] if parts.graph is None else [detector.int8_backend]
    modules = [detector.get_submodule(part.path).int8_graph for part in parts.modules]
    return [*dense, *detector.int8_boxes, *modules]


def _clock(device: torch.device) -> Callable[[], float]:
    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized if device.type == 'cuda' else time.perf_counter


@torch.no_grad()
def measure_costs(
    layers: Int8Layers, detector: Any, parts: Int8Parts, images: AnalysedImages
) -> dict[str, Cost]:
    """Cost of each layer in predictions on one image.

    Args:
        layers: The float detector's layers.
        detector: The :class:`Int8Detector` of the same file.
        parts: Its integer graphs.
        images: The first one is predicted on.
    """
    one = images.sample(1)
    one.batch_size = 1
    (batch,) = one.batches()
    clock = _clock(next(layers.model.parameters()).device)
    with evaluating(detector), evaluating(layers.model):
        nodes = node_times(
            lambda: detector.test_step(copy.deepcopy(batch)),
            executors(detector, parts),
            ROUNDS,
            clock,
        )
        floats = layer_times(
            lambda: layers.model.test_step(copy.deepcopy(batch)),
            {name: layers.layer(name) for name in layers.names},
            ROUNDS,
            clock,
        )
    costs = {}
    for name in layers.names:
        layer, (codes, exponents) = layers.layer(name), layers.codes(name)
        own = [layer.weight] + ([] if layer.bias is None else [layer.bias])
        written = {node.multiplier: 0 for node in (call.node for call in layers.calls(name))}
        spent = 0.0
        for number, graph in enumerate(parts.graphs):
            for node in graph.products():
                if node.weight == f'{name}.weight':
                    spent += nodes.get((number, node.name), 0.0)
        constants = codes.nbytes + exponents.nbytes + 2 * 4 * len(codes) * len(written)
        size = sum(p.numel() * p.element_size() for p in own)
        costs[name] = Cost(size, constants, floats.get(name, 0.0), spent)
    return costs
