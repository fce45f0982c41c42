"""``Int8Detector``: the stock detector whose layers run as integer graphs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from mmdet.models.dense_heads import YOLOV3Head, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from . import fixed_point as fp
from .attention import Projection, packed_parameters, split_attention
from .backends import Backend, build_backend
from .errors import ClipQError
from .graph.ir import FloatCall, Int8Graph
from .graph.signature import split_call
from .pipeline.mixing import mix_in
from .pipeline.switch import use_quick_pipeline


class Executor(Protocol):
    """What computes a part: a backend, or the float part under observation."""

    def run(self, *inputs: Tensor) -> Any:
        """Outputs of the part."""


@dataclass(frozen=True)
class Int8Module:
    """One of a detector's modules as an integer graph, float32 in and out.

    Attributes:
        path: Path of the module in the detector.
        form: The form of the calls that the graph answers, see
            :func:`mmclipq.graph.signature.split_call`; the graph's inputs are what it leaves open.
        graph: The graph.
    """

    path: str
    form: Any
    graph: Int8Graph


@dataclass
class Int8Parts:
    """A detector's integer graphs.

    Attributes:
        graph: Backbone, neck and dense head; None where the detector computes its features in its
            own way.
        head: Name of the dense head inside the graph, or None.
        captured: Paths of the layers that the graphs compute, all paths of a shared one.
        boxes: RoIAlign and box head of each stage of a two-stage detector, which read the codes
            of the first features; empty if there are none.
        modules: Modules outside of these that run as graphs of their own.
    """

    graph: Int8Graph | None
    head: str | None
    captured: list[str]
    boxes: tuple[Int8Graph, ...] = ()
    modules: tuple[Int8Module, ...] = ()

    @property
    def graphs(self) -> tuple[Int8Graph, ...]:
        """All graphs: the dense one, those of the boxes, those of the modules."""
        dense = () if self.graph is None else (self.graph,)
        return (*dense, *self.boxes, *(module.graph for module in self.modules))

    @property
    def feature_exponents(self) -> tuple[int | None, ...]:
        """Range exponents of the features that leave the dense graph, None for float32 ones."""
        if self.graph is None:
            return ()
        outputs, types = self.graph.outputs, self.graph.tensors
        features = outputs.get('features', ()) if isinstance(outputs, dict) else ()
        return tuple(types[ref.name].exponent for ref in features)


class DenseOutputs(Sequence[Tensor]):
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

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> DenseOutputs: ...

    def __getitem__(self, index: int | slice) -> Tensor | DenseOutputs:
        if isinstance(index, slice):
            return DenseOutputs(self.maps[index], self._exponents[index], self.head)
        index = range(len(self))[index]
        if index not in self._values:
            values, exponent = self.maps[index], self._exponents[index]
            if exponent is not None and not values.is_floating_point():
                values = fp.decode(values, exponent)
            self._values[index] = values.contiguous()
        return self._values[index]


class _Absent(nn.Module):
    """Stands where a layer was that an integer graph now computes."""

    def extra_repr(self) -> str:
        return 'computed by the integer graph'

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ClipQError(
            'found a call of a layer that calibration saw only inside another module, wanted the '
            'calls that calibration saw; calibrate on more images'
        )


class Int8Detector:
    """Mixed into a stock detector's class: same ``predict``, data preprocessor and results.

    What differs is inside: ``extract_feat``, the forward of the dense head, whose outputs come out
    of the same integer graph, the RoI head's step from regions to scores and deltas, and the
    forward of modules that run as graphs of their own. Boxes are decoded and suppressed by the
    detector's own code.

    Attributes:
        int8_backend (Backend | None): Executes the dense graph, if there is one.
        int8_boxes (list[Backend]): Execute the graphs of the RoI head's stages.
        int8_head (str | None): Name of the dense head inside the graph.
        int8_exponents (tuple): Range exponents of the features, None for float32 ones.
    """

    int8_backend: Backend | None
    int8_boxes: list[Backend]
    int8_head: str | None
    int8_exponents: tuple[int | None, ...]

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """Preprocessed images, float32 ``(N, C, H, W)``, to the features of all levels."""
        if self.int8_backend is None:
            # The stock class's, which comes behind this one.
            return super().extract_feat(batch_inputs)  # type: ignore[misc]
        return DenseOutputs.pack(self.int8_backend.run(batch_inputs), self.int8_exponents)


_ANY_ORDER = {BaseDenseHead.predict_by_feat, YOLOV3Head.predict_by_feat, YOLOXHead.predict_by_feat}
"""Decoders that permute and reshape, so that channels may lie last in what they read."""


def _in_order(tree: Any) -> Any:
    """``tree`` with tensors that lie in memory as their axes are ordered."""
    if isinstance(tree, Tensor):
        return tree.contiguous()
    if isinstance(tree, Mapping):
        return {key: _in_order(item) for key, item in tree.items()}
    return type(tree)(map(_in_order, tree)) if isinstance(tree, (tuple, list)) else tree


class _Int8Head:
    """Mixed into the dense head's class: its raw outputs were computed with the features.

    Attributes:
        int8_any_order (bool): Whether its code reads them whatever their order in memory is.
    """

    int8_any_order: bool

    def forward(self, features: DenseOutputs, *args: Any, **kwargs: Any) -> Any:
        return features.head if self.int8_any_order else _in_order(features.head)


class _Int8RoIHead:
    """Mixed into the RoI head's class: regions go through the integer graph of their stage."""

    int8_boxes: list[Executor]
    int8_levels: list[int]

    def _int8_stage(self, stage: int, features: DenseOutputs, rois: Tensor) -> dict[str, Any]:
        levels = features.maps[: self.int8_levels[stage]]
        cls_score, bbox_pred = self.int8_boxes[stage].run(*levels, rois)
        return {'cls_score': cls_score, 'bbox_pred': bbox_pred, 'bbox_feats': None}


class _Int8StandardRoIHead(_Int8RoIHead):
    """The same for a single stage."""

    def _bbox_forward(self, x: DenseOutputs, rois: Tensor) -> dict[str, Any]:
        return self._int8_stage(0, x, rois)


class _Int8CascadeRoIHead(_Int8RoIHead):
    """The same for a cascade of stages."""

    def _bbox_forward(self, stage: int, x: DenseOutputs, rois: Tensor) -> dict[str, Any]:
        return self._int8_stage(stage, x, rois)


class _Int8Forward:
    """Mixed into the class of a module that an integer graph computes."""

    int8_form: Any
    int8_graph: Executor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        form, leaves = split_call(args, kwargs)
        if form != self.int8_form:
            raise ClipQError(
                f'{type(self).__name__}: found a call of the form {form}, wanted the one that '
                f'calibration saw, {self.int8_form}'
            )
        return _in_order(self.int8_graph.run(*leaves))


def _levels(roi_head: nn.Module, stages: int) -> list[int]:
    found = roi_head.get_submodule('bbox_roi_extractor')
    extractors: list[BaseRoIExtractor] = (
        list(found) if isinstance(found, nn.ModuleList) else [found] * stages
    )
    return [extractor.num_inputs for extractor in extractors]


def _attach(
    detector: nn.Module,
    head: str | None,
    dense: Executor | None,
    boxes: Sequence[Executor],
    exponents: Sequence[int | None],
) -> list[tuple[nn.Module, type]]:
    """Let executors compute the detector's parts; returns the modules with their stock classes."""
    changed = [(detector, mix_in(detector, Int8Detector, 'Int8'))]
    vars(detector).update(int8_head=head, int8_backend=dense, int8_boxes=list(boxes))
    vars(detector).update(int8_exponents=tuple(exponents))
    if head is not None:
        module = detector.get_submodule(head)
        stock = mix_in(module, _Int8Head, 'Int8')
        changed.append((module, stock))
        decoder = getattr(stock, 'predict_by_feat', None)
        known = stock.__module__.startswith('mmdet.models.') and decoder in _ANY_ORDER
        vars(module).update(int8_any_order=known)
    if boxes:
        roi_head = detector.get_submodule('roi_head')
        cascade = isinstance(roi_head, CascadeRoIHead)
        mixin = _Int8CascadeRoIHead if cascade else _Int8StandardRoIHead
        changed.append((roi_head, mix_in(roi_head, mixin, 'Int8')))
        vars(roi_head).update(int8_boxes=list(boxes), int8_levels=_levels(roi_head, len(boxes)))
    return changed


@contextmanager
def executing(
    detector: nn.Module,
    head: str | None,
    dense: Executor | None,
    boxes: Sequence[Executor] = (),
    exponents: Sequence[int | None] = (),
) -> Iterator[None]:
    """Inside, ``detector`` predicts with its parts computed by executors; stock again afterwards.

    Calibration and comparisons observe the parts this way, on the regions that the detector itself
    proposes.

    Args:
        detector: A stock detector.
        head: Name of the dense head whose outputs the dense part gives, or None.
        dense: Computes the dense part; None if the detector does.
        boxes: Compute the stages of the RoI head; by default it computes them itself.
        exponents: Range exponents of the features, where the dense part gives codes.
    """
    changed = _attach(detector, head, dense, boxes, exponents)
    try:
        yield
    finally:
        for module, stock in changed:
            module.__class__ = stock
            for name in ('head', 'backend', 'boxes', 'levels', 'exponents', 'any_order'):
                module.__dict__.pop(f'int8_{name}', None)


def plain_samples(images: Tensor) -> list[DetDataSample]:
    """Data samples for images ``(N, C, H, W)`` that come without any: they fill the batch."""
    size = tuple(images.shape[2:])
    meta: dict[str, tuple[float, ...]] = {'scale_factor': (1.0, 1.0)}
    meta |= dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
    return [DetDataSample(metainfo=meta) for _ in images]


def _has_tensors(module: nn.Module) -> bool:
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next(tensors, None) is not None


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
    split_attention(detector)  # its projections are layers of the graphs
    for path, name in packed_parameters(detector, parts.captured):
        detector.get_submodule(path)._parameters[name] = None
    replaced = {detector.get_submodule(part.path) for part in parts.modules}
    for path in parts.captured:
        owner, _, name = path.rpartition('.')
        module = detector.get_submodule(path)
        if module in replaced:  # a layer that is called on its own
            module._parameters.update(dict.fromkeys(module._parameters))
            continue
        # An extractor has no weights, and a mask head may read the same one.
        if isinstance(module, Projection) or _has_tensors(module):
            setattr(detector.get_submodule(owner), name, _Absent())
    detector.to(device).eval()

    def executor(graph: Int8Graph) -> Backend:
        return build_backend(backend, graph, detector, device)

    dense = None if parts.graph is None else executor(parts.graph)
    _attach(detector, parts.head, dense, list(map(executor, parts.boxes)), parts.feature_exponents)
    for part in parts.modules:
        module = detector.get_submodule(part.path)
        mix_in(module, _Int8Forward, 'Int8')
        vars(module).update(int8_form=part.form, int8_graph=executor(part.graph))
    if torch.device(device).type == 'cpu':
        entry = None if dense is None or dense.entry is None else dense.entry.type
        use_quick_pipeline(detector, entry=entry)
    return detector
