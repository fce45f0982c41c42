"""Traces a detector's parts with ``torch.fx``: the dense one, and one per RoI box head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, fx, nn

from ..graph.signature import input_name, join_call, split_call
from .agreement import same_results
from .nodes import name_of
from .tracer import REASON, CaptureError, evaluating, sentence, trace

__all__ = [
    'BoxPart',
    'CaptureError',
    'Captured',
    'DensePart',
    'ModulePart',
    'called_layers',
    'capture',
    'capture_boxes',
    'capture_module',
    'dense_head_name',
    'evaluating',
]

EXAMPLE_SIZE = (320, 320)
"""Height and width of an image that any detector takes, for tracing without one."""

_STOCK_EXTRACTORS = {SingleStageDetector.extract_feat, TwoStageDetector.extract_feat}
_STOCK_BOX_FORWARDS = {StandardRoIHead._bbox_forward, CascadeRoIHead._bbox_forward}


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

    backbone: nn.Module
    neck: nn.Module

    def __init__(self, detector: nn.Module, head: str | None) -> None:
        super().__init__()
        if getattr(type(detector), 'extract_feat', None) not in _STOCK_EXTRACTORS:
            raise CaptureError(
                f'{type(detector).__name__}: found its own extract_feat, wanted a detector whose '
                'features are those of backbone and neck; int8 does not cover it'
            )
        self.backbone = detector.get_submodule('backbone')
        if detector.with_neck:
            self.neck = detector.get_submodule('neck')
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

    ``forward`` takes the features of each level ``(N, C, H, W)``, then regions ``(K, 5)``, and
    returns what the box head returns: class scores and box deltas.

    Args:
        detector: A two-stage detector whose RoI head runs its boxes as mmdet's Standard- or
            CascadeRoIHead does.
        stage: Number of the cascade's stage, or None for a head of one stage.
    """

    roi_head: StandardRoIHead

    def __init__(self, detector: nn.Module, stage: int | None) -> None:
        super().__init__()
        self.roi_head = detector.roi_head
        self.stage = stage

    def _of_stage(self, modules: nn.Module) -> nn.Module:
        return modules if self.stage is None else cast(nn.ModuleList, modules)[self.stage]

    @property
    def extractor(self) -> BaseRoIExtractor:
        return self._of_stage(self.roi_head.bbox_roi_extractor)

    def forward(self, *levels_and_rois: Tensor) -> Any:
        *levels, rois = levels_and_rois
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
        return [path for part in (self.module, *self.boxes) for path in called_layers(part)]


def called_layers(module: fx.GraphModule) -> list[str]:
    """Paths of the layers that a traced part calls, in order, one for each call."""
    return [name_of(node) for node in module.graph.nodes if node.op == 'call_module']


def dense_head_name(detector: nn.Module) -> str | None:
    """Attribute of the detector that holds its dense head; None if there is no such head."""
    for name in ('rpn_head', 'bbox_head'):
        if isinstance(getattr(detector, name, None), nn.Module):
            return name
    return None


def capture_boxes(detector: nn.Module) -> tuple[fx.GraphModule, ...]:
    """Trace the box heads of a two-stage detector, one for each stage.

    The traced modules take each level's features ``(N, C, H, W)``, then regions ``(K, 5)``.

    Raises:
        CaptureError: if the RoI head runs its boxes in its own way, or cannot be traced.
    """
    roi_head: StandardRoIHead = detector.roi_head
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
        levels = [f'level{index}' for index in range(part.extractor.num_inputs)]
        examples = [level] * len(levels) + [parameter.new_zeros(1, 5)]
        parts.append(trace(part, [*levels, 'rois'], examples))
    return tuple(parts)


def capture(detector: nn.Module, image: Tensor | None = None) -> Captured:
    """Trace backbone, neck and dense head of ``detector``, and the box heads of its RoI head.

    A submodule that cannot be traced becomes one step of the graph. A head that cannot be traced
    stays outside, with the reason in the result.

    Args:
        detector: The detector.
        image: A preprocessed image, float32 ``(1, C, H, W)``, on which the trace is compared with
            the detector. Without one nothing is compared.

    Raises:
        CaptureError: if the detector computes its features in its own way, or if the trace gives
            other results than the detector.
    """
    example = image
    if example is None:
        example = next(detector.parameters()).new_zeros(1, 3, *EXAMPLE_SIZE)
    head = dense_head_name(detector)
    left_out: dict[str, str] = {}
    module = None
    if head is None:
        left_out['dense head'] = f'{type(detector).__name__} has no dense head'
    else:
        module = trace(DensePart(detector, head), ['image'], [example])
        reason = next((n.meta.get(REASON) for n in module.graph.nodes if n.target == head), None)
        if reason is not None:
            left_out['dense head'], head, module = f'{head}: {reason}', None, None
    module = module or trace(DensePart(detector, None), ['image'], [example])
    if image is not None:
        _check(DensePart(detector, head), module, image)
    captured = Captured(module, head, left_out)
    if hasattr(detector, 'roi_head'):
        try:
            captured.boxes = capture_boxes(detector)
            captured.levels = max(len(_placeholders(box)) - 1 for box in captured.boxes)
        except CaptureError as error:
            left_out['roi_head'] = str(error)
    return captured


@torch.no_grad()
def _check(part: DensePart, traced: fx.GraphModule, image: Tensor) -> None:
    """Return if the trace agrees with the detector on ``image`` and on the same one turned.

    Raises:
        CaptureError: if it does not, as where a size has become a constant of the trace.
    """
    with evaluating(part):
        for turned in (False, True):
            x = image.transpose(2, 3).contiguous() if turned else image
            try:
                wanted = part(x.clone())
            except Exception:
                if turned:  # a detector for images of one shape
                    return
                raise
            try:
                agrees = same_results(traced(x.clone()), wanted)
            except Exception as error:
                raise CaptureError(f'found a trace that fails ({sentence(error)})') from error
            if not agrees:
                raise CaptureError('found a trace with other results than the detector')


class ModulePart(nn.Module):
    """One call of one of a detector's modules, under the detector's own names.

    ``forward`` takes the tensors and numbers of the call in order.

    Args:
        detector: The detector.
        path: Path of the module.
        form: Form of the call, see :func:`mmclipq.graph.signature.split_call`.
    """

    def __init__(self, detector: nn.Module, path: str, form: Any) -> None:
        super().__init__()
        for name in ('_modules', '_parameters', '_buffers'):
            self.__dict__[name] = vars(detector)[name]
        self.path, self.form = path, form

    def forward(self, *leaves: Any) -> Any:
        args, kwargs = join_call(self.form, leaves)
        return self.get_submodule(self.path)(*args, **kwargs)


def capture_module(
    detector: nn.Module, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, fx.GraphModule]:
    """Trace one module of ``detector`` by a call of it; returns the form of the call, too.

    Raises:
        GraphError: if the arguments are not tensors and plain data, or if the module's own forward
            cannot be traced.
    """
    form, leaves = split_call(args, kwargs)
    names = [input_name(index) for index in range(len(leaves))]
    return form, trace(ModulePart(detector, path, form), names, leaves, path)


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == 'placeholder']
