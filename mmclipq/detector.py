"""``Int8Detector``: the stock detector whose convolutional part runs as an integer graph."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .backends import Backend, build_backend
from .graph.ir import FloatCall, Int8Graph


class DenseOutputs(tuple):
    """The features of all levels as the detector passes them on, with the dense head's outputs."""

    head: Any

    @classmethod
    def pack(cls, outputs: dict[str, Any]) -> DenseOutputs:
        packed = cls(outputs.get('features', ()))
        packed.head = outputs.get('head')
        return packed


class _Absent(nn.Module):
    """Stands where a layer was that the integer graph now computes."""

    def extra_repr(self) -> str:
        return 'computed by the integer graph'


class Int8Detector:
    """Mixed into a stock detector's class: same ``predict``, data preprocessor and results.

    Only ``extract_feat`` differs, and the forward of the dense head, whose outputs come out of the
    same integer graph. Boxes are decoded and suppressed by the detector's own code.

    Attributes:
        int8_backend (Backend): Executes the graph.
        int8_head (str | None): Name of the dense head inside the graph.
    """

    int8_backend: Backend
    int8_head: str | None

    def extract_feat(self, batch_inputs: Tensor) -> DenseOutputs:
        """Preprocessed images, float32 ``(N, C, H, W)``, to dequantized features."""
        return DenseOutputs.pack(self.int8_backend.run(batch_inputs))


class _Int8Head:
    """Mixed into the dense head's class: its raw outputs were computed with the features."""

    def forward(self, features: DenseOutputs, *args: Any, **kwargs: Any) -> Any:
        return features.head


@functools.cache
def _mixed(mixin: type, stock: type) -> type:
    return type(f'Int8{stock.__name__}', (mixin, stock), {'__doc__': mixin.__doc__})


def captured_layers(graph: Int8Graph, called: Iterable[str]) -> list[str]:
    """Those of the ``called`` module paths that the graph computes by itself."""
    islands = {node.target for node in graph.nodes if isinstance(node, FloatCall)}
    return [
        path
        for path in dict.fromkeys(called)
        if path not in islands and not any(name.startswith(f'{path}.') for name in islands)
    ]


def to_int8(
    detector: nn.Module,
    graph: Int8Graph,
    head: str | None,
    captured: Iterable[str],
    backend: str = 'auto',
    device: str = 'cpu',
) -> nn.Module:
    """Turn a built detector into an :class:`Int8Detector`, in place.

    Args:
        detector: The stock detector, in any mode; its captured layers are dropped.
        graph: What replaces them.
        head: Name of the dense head inside the graph, or None.
        captured: Paths of the layers that the graph computes.
        backend: Name of the backend.
        device: Where everything runs.

    Returns:
        ``detector`` itself, in evaluation mode, now also an :class:`Int8Detector`.
    """
    for path in captured:
        owner, _, name = path.rpartition('.')
        setattr(detector.get_submodule(owner), name, _Absent())
    detector.__class__ = _mixed(Int8Detector, type(detector))
    if head is not None:
        module = getattr(detector, head)
        module.__class__ = _mixed(_Int8Head, type(module))
    detector.to(device).eval()
    detector.int8_head = head
    detector.int8_backend = build_backend(backend, graph, detector, device)
    return detector
