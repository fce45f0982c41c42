"""``Int8Detector``: the stock detector whose layers run as integer graphs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from . import fixed_point as fp
from .backends import Backend, build_backend
from .graph.ir import FloatCall, Int8Graph


class Executor(Protocol):
    """What computes a part: a backend, or the float part under observation."""

    def run(self, *inputs: Tensor) -> Any:
        """Outputs of the part."""


@dataclass
class Int8Parts:
    """A detector's integer graphs.

    Attributes:
        graph: Backbone, neck and dense head.
        head: Name of the dense head inside the graph, or None.
        captured: Paths of the layers that the graphs compute.
        boxes: RoIAlign and box head of each stage of a two-stage detector, which read the codes
            of the first features; empty if there are none.
    """

    graph: Int8Graph
    head: str | None
    captured: list[str]
    boxes: tuple[Int8Graph, ...] = ()

    @property
    def graphs(self) -> tuple[Int8Graph, ...]:
        """All graphs, the dense one first."""
        return (self.graph, *self.boxes)

    @property
    def feature_exponents(self) -> tuple[int | None, ...]:
        """Range exponents of the features that leave the dense graph, None for float32 ones."""
        outputs, types = self.graph.outputs, self.graph.tensors
        features = outputs.get('features', ()) if isinstance(outputs, dict) else ()
        return tuple(types[ref.name].exponent for ref in features)


class DenseOutputs(Sequence):
    """The features of all levels as a detector passes them on, with the dense head's outputs.

    Features that are codes are dequantized when something reads one by its index, and then kept.

    Attributes:
        maps: Each level as the executor gave it: codes, or float32 values.
        head: Raw outputs of the dense head.
    """

    def __init__(
        self, maps: Sequence[Tensor], exponents: Sequence[int | None], head: Any = None
    ) -> None:
        self.maps, self.head = tuple(maps), head
        self._exponents = tuple(exponents)
        self._values: dict[int, Tensor] = {}

    @classmethod
    def pack(cls, outputs: dict[str, Any], exponents: Sequence[int | None] = ()) -> DenseOutputs:
        """From a dense part's outputs and the range exponents of the features that are codes."""
        maps = outputs.get('features', ())
        exponents = (*exponents, *[None] * (len(maps) - len(exponents)))
        return cls(maps, exponents, outputs.get('head'))

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int | slice) -> Tensor | DenseOutputs:
        if isinstance(index, slice):
            return DenseOutputs(self.maps[index], self._exponents[index], self.head)
        index = range(len(self))[index]
        if self.maps[index].is_floating_point():
            return self.maps[index]
        if index not in self._values:
            self._values[index] = fp.decode(self.maps[index], self._exponents[index])
        return self._values[index]


class _Absent(nn.Module):
    """Stands where a layer was that an integer graph now computes."""

    def extra_repr(self) -> str:
        return 'computed by the integer graph'


class Int8Detector:
    """Mixed into a stock detector's class: same ``predict``, data preprocessor and results.

    Only ``extract_feat`` differs, the forward of the dense head, whose outputs come out of the same
    integer graph, and the RoI head's step from regions to scores and deltas. Boxes are decoded and
    suppressed by the detector's own code.

    Attributes:
        int8_backend (Backend): Executes the dense graph.
        int8_boxes (list[Backend]): Execute the graphs of the RoI head's stages.
        int8_head (str | None): Name of the dense head inside the graph.
        int8_exponents (tuple): Range exponents of the features, None for float32 ones.
    """

    int8_backend: Backend
    int8_boxes: list[Backend]
    int8_head: str | None
    int8_exponents: tuple[int | None, ...]

    def extract_feat(self, batch_inputs: Tensor) -> DenseOutputs:
        """Preprocessed images, float32 ``(N, C, H, W)``, to the features of all levels."""
        return DenseOutputs.pack(self.int8_backend.run(batch_inputs), self.int8_exponents)


class _Int8Head:
    """Mixed into the dense head's class: its raw outputs were computed with the features."""

    def forward(self, features: DenseOutputs, *args: Any, **kwargs: Any) -> Any:
        return features.head


class _Int8RoIHead:
    """Mixed into the RoI head's class: regions go through the integer graph of their stage."""

    int8_boxes: list[Executor]
    int8_levels: list[int]

    def _int8_stage(self, stage: int, features: DenseOutputs, rois: Tensor) -> dict[str, Any]:
        levels = features.maps[: self.int8_levels[stage]]
        cls_score, bbox_pred = self.int8_boxes[stage].run(*levels, rois)
        return {'cls_score': cls_score, 'bbox_pred': bbox_pred, 'bbox_feats': None}

    def _bbox_forward(self, x: DenseOutputs, rois: Tensor) -> dict[str, Any]:
        return self._int8_stage(0, x, rois)


class _Int8CascadeRoIHead(_Int8RoIHead):
    """The same for a cascade of stages."""

    def _bbox_forward(self, stage: int, x: DenseOutputs, rois: Tensor) -> dict[str, Any]:
        return self._int8_stage(stage, x, rois)


@functools.cache
def _mixed(mixin: type, stock: type) -> type:
    return type(f'Int8{stock.__name__}', (mixin, stock), {'__doc__': mixin.__doc__})


def _levels(roi_head: nn.Module, stages: int) -> list[int]:
    extractors = roi_head.bbox_roi_extractor
    if not isinstance(extractors, nn.ModuleList):
        extractors = [extractors] * stages
    return [extractor.num_inputs for extractor in extractors]


def _attach(
    detector: nn.Module,
    head: str | None,
    dense: Executor,
    boxes: Sequence[Executor],
    exponents: Sequence[int | None],
) -> list[tuple[nn.Module, type]]:
    """Let executors compute the detector's parts; returns the modules with their stock classes."""
    changed = [(detector, type(detector))]
    detector.__class__ = _mixed(Int8Detector, type(detector))
    detector.int8_head, detector.int8_backend, detector.int8_boxes = head, dense, list(boxes)
    detector.int8_exponents = tuple(exponents)
    if head is not None:
        module = getattr(detector, head)
        changed.append((module, type(module)))
        module.__class__ = _mixed(_Int8Head, type(module))
    if boxes:
        roi_head = detector.roi_head
        changed.append((roi_head, type(roi_head)))
        cascade = isinstance(roi_head, CascadeRoIHead)
        mixin = _Int8CascadeRoIHead if cascade else _Int8RoIHead
        roi_head.__class__ = _mixed(mixin, type(roi_head))
        roi_head.int8_boxes, roi_head.int8_levels = list(boxes), _levels(roi_head, len(boxes))
    return changed


@contextmanager
def executing(
    detector: nn.Module,
    head: str | None,
    dense: Executor,
    boxes: Sequence[Executor] = (),
    exponents: Sequence[int | None] = (),
) -> Iterator[None]:
    """Inside, ``detector`` predicts with its parts computed by executors; stock again afterwards.

    Calibration and comparisons observe the parts this way, on the regions that the detector itself
    proposes.

    Args:
        detector: A stock detector.
        head: Name of the dense head whose outputs the dense part gives, or None.
        dense: Computes the dense part.
        boxes: Compute the stages of the RoI head; by default it computes them itself.
        exponents: Range exponents of the features, where the dense part gives codes.
    """
    changed = _attach(detector, head, dense, boxes, exponents)
    try:
        yield
    finally:
        for module, stock in changed:
            module.__class__ = stock
            for name in ('head', 'backend', 'boxes', 'levels', 'exponents'):
                module.__dict__.pop(f'int8_{name}', None)


def plain_samples(images: Tensor) -> list[DetDataSample]:
    """Data samples for images ``(N, C, H, W)`` that come without any: they fill the batch."""
    size = tuple(images.shape[2:])
    meta = {'scale_factor': (1.0, 1.0)}
    meta |= dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
    return [DetDataSample(metainfo=meta) for _ in images]


def captured_layers(graphs: Iterable[Int8Graph], called: Iterable[str]) -> list[str]:
    """Those of the ``called`` module paths that the graphs compute by themselves."""
    nodes = [node for graph in graphs for node in graph.nodes]
    islands = {node.target for node in nodes if isinstance(node, FloatCall)}
    return [
        path
        for path in dict.fromkeys(called)
        if path not in islands and not any(name.startswith(f'{path}.') for name in islands)
    ]


def to_int8(
    detector: nn.Module, parts: Int8Parts, backend: str = 'auto', device: str = 'cpu'
) -> nn.Module:
    """Turn a built detector into an :class:`Int8Detector`, in place.

    Args:
        detector: The stock detector, in any mode; its captured layers are dropped.
        parts: What replaces them.
        backend: Name of the backend.
        device: Where everything runs.

    Returns:
        ``detector`` itself, in evaluation mode, now also an :class:`Int8Detector`.
    """
    for path in parts.captured:
        owner, _, name = path.rpartition('.')
        module = detector.get_submodule(path)
        # An extractor has no weights, and a mask head may read the same one.
        if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
            setattr(detector.get_submodule(owner), name, _Absent())
    detector.to(device).eval()
    dense, *boxes = (build_backend(backend, graph, detector, device) for graph in parts.graphs)
    _attach(detector, parts.head, dense, boxes, parts.feature_exponents)
    return detector
