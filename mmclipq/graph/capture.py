"""Traces the convolutional part of a detector with ``torch.fx``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from torch import Tensor, fx, nn

from .ir import GraphError

_STOCK_EXTRACTORS = {SingleStageDetector.extract_feat, TwoStageDetector.extract_feat}


class CaptureError(GraphError):
    """A detector, or a part of it, whose computation cannot be written down as a graph."""


class DensePart(nn.Module):
    """Backbone, neck and dense head of a detector under their own names, without predictions.

    ``forward`` takes the preprocessed images ``(N, C, H, W)`` and returns a dict with the raw
    outputs of the dense head under ``'head'`` and, where other parts of the detector read them,
    the features of all levels under ``'features'``.

    Args:
        detector: A detector whose features come from backbone and neck alone.
        head: Name of the dense head to include, or None to stop at the features.

    Raises:
        CaptureError: if the detector computes its features in its own way.
    """

    def __init__(self, detector: nn.Module, head: str | None) -> None:
        super().__init__()
        if getattr(type(detector), 'extract_feat', None) not in _STOCK_EXTRACTORS:
            raise CaptureError(
                f'{type(detector).__name__}: found its own extract_feat, wanted a detector whose '
                'features are those of backbone and neck; int8 does not cover it'
            )
        self.backbone = detector.backbone
        if detector.with_neck:
            self.neck = detector.neck
        self.head_name = head
        if head is not None:
            setattr(self, head, getattr(detector, head))
        self.keep_features = head is None or hasattr(detector, 'roi_head')

    def forward(self, image: Tensor) -> dict[str, Any]:
        features = self.backbone(image)
        if hasattr(self, 'neck'):
            features = self.neck(features)
        outputs: dict[str, Any] = {}
        if self.keep_features:
            outputs['features'] = tuple(features)
        if self.head_name is not None:
            outputs['head'] = getattr(self, self.head_name)(features)
        return outputs


@dataclass
class Captured:
    """A traced part: run it, or lower its graph.

    Attributes:
        module: Executable in float, in :func:`evaluating`; shares the detector's modules and
            their modes.
        head: Name of the dense head inside, or None if it stays outside.
        left_out: Why the dense head stays outside; empty otherwise.
    """

    module: fx.GraphModule
    head: str | None
    left_out: str = ''

    @property
    def called(self) -> list[str]:
        """Paths of the layers that the part calls, in order, one for each call."""
        return [node.target for node in self.module.graph.nodes if node.op == 'call_module']


class _Tracer(fx.Tracer):
    """Keeps every module without children whole, and remembers where tracing stopped."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)
        self.path: list[str] = []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        has_children = next(module.children(), None) is not None
        return not has_children or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        self.path.append(self.path_of_module(module))
        result = super().call_module(module, forward, args, kwargs)
        self.path.pop()
        return result


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode again afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _trace(part: DensePart) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        with evaluating(part):
            graph = tracer.trace(part)
    except Exception as error:
        where = tracer.path[-1] if tracer.path else type(part).__name__
        module = part.get_submodule(where) if tracer.path else part
        reason = str(error).split('\n')[0]
        raise CaptureError(
            f'{where} ({type(module).__name__}): found a step whose course depends on the data '
            f'({reason}), wanted one that torch.fx can trace; int8 does not cover it'
        ) from error
    return fx.GraphModule(part, graph)


def dense_head_name(detector: nn.Module) -> str | None:
    """Attribute of the detector that holds its dense head; None if there is no such head."""
    for name in ('rpn_head', 'bbox_head'):
        if isinstance(getattr(detector, name, None), nn.Module):
            return name
    return None


def capture(detector: nn.Module) -> Captured:
    """Trace backbone, neck and dense head of ``detector``.

    A head that cannot be traced stays outside, with the reason in the result.

    Raises:
        CaptureError: naming the layer, if backbone or neck cannot be traced.
    """
    head = dense_head_name(detector)
    left_out = f'{type(detector).__name__} has no dense head'
    if head is not None:
        try:
            return Captured(_trace(DensePart(detector, head)), head)
        except CaptureError as error:
            left_out = str(error)
    return Captured(_trace(DensePart(detector, None)), None, left_out)
