"""Traces a detector's parts with ``torch.fx``: the dense one, and one per RoI box head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, fx, nn

from ..graph.ir import GraphError
from .activations import WHOLE

_STOCK_EXTRACTORS = {SingleStageDetector.extract_feat, TwoStageDetector.extract_feat}
_STOCK_BOX_FORWARDS = {StandardRoIHead._bbox_forward, CascadeRoIHead._bbox_forward}


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


class BoxPart(nn.Module):
    """RoIAlign and box head of one stage of an RoI head, under the detector's own names.

    ``forward`` takes the features of the levels ``(N, C, H, W)`` and regions ``(K, 5)`` and returns
    what the box head returns: class scores and box deltas.

    Args:
        detector: A two-stage detector whose RoI head runs its boxes as mmdet's Standard- or
            CascadeRoIHead does.
        stage: Number of the cascade's stage, or None for a head of one stage.
    """

    def __init__(self, detector: nn.Module, stage: int | None) -> None:
        super().__init__()
        self.roi_head = detector.roi_head
        self.stage = stage

    def _of_stage(self, modules: nn.Module) -> nn.Module:
        return modules if self.stage is None else modules[self.stage]

    @property
    def extractor(self) -> BaseRoIExtractor:
        return self._of_stage(self.roi_head.bbox_roi_extractor)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Any:
        levels = [features[index] for index in range(self.extractor.num_inputs)]
        regions = self.extractor(levels, rois)
        if self.roi_head.with_shared_head:
            regions = self.roi_head.shared_head(regions)
        return self._of_stage(self.roi_head.bbox_head)(regions)


@dataclass
class Captured:
    """A traced part: run it, or lower its graph.

    Attributes:
        module: Executable in float, in :func:`evaluating`; shares the detector's modules and
            their modes.
        head: Name of the dense head inside, or None if it stays outside.
        left_out: What stays outside and why; empty if nothing does.
        boxes: The RoI box heads, one for each stage.
        levels: How many features the box heads read.
    """

    module: fx.GraphModule
    head: str | None
    left_out: dict[str, str] = field(default_factory=dict)
    boxes: tuple[fx.GraphModule, ...] = ()
    levels: int = 0

    @property
    def called(self) -> list[str]:
        """Paths of the layers that the parts call, in order, one for each call."""
        return [
            node.target
            for part in (self.module, *self.boxes)
            for node in part.graph.nodes
            if node.op == 'call_module'
        ]


class _Tracer(fx.Tracer):
    """Keeps every module without children whole, and remembers where tracing stopped.

    Args:
        examples: Values of the arguments, with which a condition on the number of a tensor's axes,
            or on whether it is empty, is decided while tracing; without them every condition is an
            error.
    """

    def __init__(self, examples: Sequence[Any] = ()) -> None:
        super().__init__(param_shapes_constant=True)
        self.path: list[str] = []
        self.examples = examples
        self.executing = False

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        has_children = next(module.children(), None) is not None
        whole = isinstance(module, (BaseRoIExtractor, *WHOLE))
        leaf = whole or not has_children
        return leaf or super().is_leaf_module(module, name)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self.executing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not self.examples or not _is_about_axes(obj.node):
            return super().to_bool(obj)
        interpreter = fx.Interpreter(self.root, graph=self.graph)
        interpreter.args_iter = iter(self.examples)
        self.executing = True
        with torch.no_grad():
            for node in self.graph.nodes:
                interpreter.env[node] = interpreter.run_node(node)
        self.executing = False
        return bool(interpreter.env[obj.node])

    def call_module(self, module, forward, args, kwargs):
        if self.executing:
            return forward(*args, **kwargs)
        self.path.append(self.path_of_module(module))
        result = super().call_module(module, forward, args, kwargs)
        self.path.pop()
        return result


def _is_about_axes(node: fx.Node) -> bool:
    """Whether the condition asks for a number of axes, or whether there is anything at all.

    No data changes the first, and mmdet's RoI heads do not run their box heads on nothing.
    """
    sources = [source.target for source in node.all_input_nodes if source.op == 'call_method']
    return sources == ['dim'] or sources == ['numel'] and node.args[1] == 0


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


def _trace(part: nn.Module, examples: Sequence[Any] = ()) -> fx.GraphModule:
    tracer = _Tracer(examples)
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


def _levels_as_arguments(module: fx.GraphModule) -> fx.GraphModule:
    """The traced box part with one argument for each level instead of one with all."""
    features, *_ = module.graph.nodes
    for index, item in enumerate(list(features.users)):
        with module.graph.inserting_before(features):
            level = module.graph.placeholder(f'level{index}')
        item.replace_all_uses_with(level)
        module.graph.erase_node(item)
    module.graph.erase_node(features)
    module.graph.eliminate_dead_code()  # conditions that tracing has decided
    module.recompile()
    return module


def capture_boxes(detector: nn.Module) -> tuple[fx.GraphModule, ...]:
    """Trace the box heads of a two-stage detector, one for each stage.

    The traced modules take each level's features ``(N, C, H, W)``, then regions ``(K, 5)``.

    Raises:
        CaptureError: if the RoI head runs its boxes in its own way, or cannot be traced.
    """
    roi_head = detector.roi_head
    if getattr(type(roi_head), '_bbox_forward', None) not in _STOCK_BOX_FORWARDS:
        raise CaptureError(
            f'{type(roi_head).__name__}: found its own way from regions to boxes, wanted that of '
            "mmdet's StandardRoIHead or CascadeRoIHead"
        )
    if roi_head.with_shared_head and roi_head.with_mask:
        raise CaptureError(
            f'{type(roi_head).__name__}: found a shared head that the mask head reads, too, wanted '
            'one for boxes alone'
        )
    stages = range(roi_head.num_stages) if isinstance(roi_head, CascadeRoIHead) else (None,)
    parts = []
    for stage in stages:
        part = BoxPart(detector, stage)
        parameter = next(part.roi_head.parameters())
        level = parameter.new_zeros(1, part.extractor.out_channels, 8, 8)
        examples = [level] * part.extractor.num_inputs, parameter.new_zeros(1, 5)
        parts.append(_levels_as_arguments(_trace(part, examples)))
    return tuple(parts)


def capture(detector: nn.Module) -> Captured:
    """Trace backbone, neck and dense head of ``detector``, and the box heads of its RoI head.

    A head that cannot be traced stays outside, with the reason in the result.

    Raises:
        CaptureError: naming the layer, if backbone or neck cannot be traced.
    """
    head = dense_head_name(detector)
    left_out: dict[str, str] = {}
    module = None
    if head is None:
        left_out['dense head'] = f'{type(detector).__name__} has no dense head'
    else:
        try:
            module = _trace(DensePart(detector, head))
        except CaptureError as error:
            left_out['dense head'], head = str(error), None
    captured = Captured(module or _trace(DensePart(detector, None)), head, left_out)
    if hasattr(detector, 'roi_head'):
        try:
            captured.boxes = capture_boxes(detector)
            captured.levels = max(len(_placeholders(box)) - 1 for box in captured.boxes)
        except CaptureError as error:
            left_out['roi_head'] = str(error)
    return captured


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == 'placeholder']
