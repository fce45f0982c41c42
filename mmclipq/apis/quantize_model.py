"""From a float detector to its integer graph."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from torch import Tensor, nn
from tqdm import tqdm

from .._compat import as_detector
from ..calibration.options import CalibrationOptions
from ..detector import Int8Module, Int8Parts, captured_layers, executing, plain_samples
from ..errors import ClipQError
from ..graph.ir import FloatCall, Int8Graph, TensorType
from ..lowering.capture import Captured, CaptureError, called_layers, capture, evaluating
from ..lowering.execution import Execution
from ..lowering.module_parts import ModuleParts
from ..lowering.moments import Moments
from ..lowering.part import Lowering
from ..prepare import (
    clip_layers,
    find_weight_ranges,
    prepare_model,
    prepare_options,
    unclipped_layers,
)
from .reservoir import Reservoir
from .stand_in import every_score_counts, regions_where_none_are_proposed


@dataclass
class Quantized(Int8Parts):
    """A detector's integer graphs and what they leave out.

    Attributes:
        left: Name and reason of everything that stays in float.
    """

    left: dict[str, str] = field(default_factory=dict)


def cannot_be_negative(preprocessor: nn.Module) -> bool:
    """Whether images with pixels from 0 to 255 stay non-negative after the preprocessing."""
    mean, padding = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'pad_value', 0)
    if not getattr(preprocessor, '_enable_normalize', False) or mean is None:
        return padding >= 0
    return bool((mean <= 0).all()) and padding >= 0


def preprocessed(
    model: nn.Module, batches: Iterable[Any]
) -> Iterator[tuple[Tensor, list[DetDataSample]]]:
    """Images ``(N, C, H, W)`` and data samples of batches from a dataloader, or of bare images."""
    for batch in batches:
        if isinstance(batch, Tensor):
            yield batch.to(next(model.parameters()).device), plain_samples(batch)
        else:
            data = as_detector(model).data_preprocessor(batch, False)
            yield data['inputs'], data['data_samples']


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    clipq: Mapping[str, Any] | None = None,
    method: str = CalibrationOptions.method,
    offsets: bool = CalibrationOptions.offsets,
    percentile: float = CalibrationOptions.percentile,
    bias_correction: bool = CalibrationOptions.bias_correction,
) -> Quantized:
    """Calibrate and lower a built float detector; the detector itself stays executable in float.

    Args:
        model: A detector with its weights loaded, prepared (:func:`mmclipq.prepare_model`) or
            not. If not, it is prepared with the layer options in ``clipq``.
        batches: Calibration data: what a dataloader gives, or preprocessed float32 images.
        clipq: The ``clipq`` section of a config.
        method, offsets, percentile, bias_correction: See
            :class:`mmclipq.calibration.options.CalibrationOptions`.

    Raises:
        ClipQError: for a detector that cannot be captured, NaN weights, no images, and so on.
    """
    options = CalibrationOptions(method, percentile, offsets, bias_correction)
    session = calibrate(model, batches, clipq)
    session.measure(options)
    return session.finish(options)


def calibrate(
    model: nn.Module, batches: Iterable[Any], clipq: Mapping[str, Any] | None = None
) -> CalibrationSession:
    """Let a float detector see calibration data, for :meth:`CalibrationSession.finish`.

    The arguments are those of :func:`quantize`, whose errors are raised.
    """
    if next(clip_layers(model), None) is None:
        prepare_model(model, **prepare_options(clipq))
    find_weight_ranges(model)
    session = CalibrationSession(model)
    for images, samples in preprocessed(model, batches):
        session.observe(images, samples)
    session.stand_in()
    return session


class CalibrationSession:
    """What calibration knows of a detector: its parts under observation.

    Args:
        model: The prepared detector.

    Attributes:
        held: Some of the images, for second looks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.traced: Captured | None = None
        self.dense: Lowering | None = None
        self.boxes: list[Lowering] = []
        self.left: dict[str, str] = {}
        self.modules = ModuleParts(model)
        self.first: tuple[Tensor, list[DetDataSample]] | None = None
        self.held = Reservoir()
        self.moments: dict[str, Moments] = {}

    @property
    def parts(self) -> dict[str, Lowering]:
        """The detector's parts by name: ``dense``, ``boxes 0`` and so on, paths of modules."""
        named = {} if self.dense is None else {'dense': self.dense}
        named |= {f'boxes {index}': box for index, box in enumerate(self.boxes)}
        return named | {part.path: part.lowering for part in self.modules.parts.values()}

    def start(self, image: Tensor) -> None:
        """Trace the parts that the detector has, with an image ``(1, C, H, W)``."""
        try:
            self.traced = traced = capture(self.model, image)
        except CaptureError as error:
            self.left['detector'] = f'{error}: it is captured module by module'
            return
        self.left |= traced.left_out
        non_negative = cannot_be_negative(as_detector(self.model).data_preprocessor)
        self.dense = Lowering(traced.module, non_negative, traced.levels)
        features_from_zero = all(unit.non_negative for unit in self.dense.plan.levels)
        self.boxes = [
            Lowering(part, features_from_zero, levels_read=traced.levels) for part in traced.boxes
        ]
        if traced.head is not None:
            self.modules.outside.add(traced.head)

    def needs_predictions(self) -> bool:
        """Whether anything beside the dense part has layers to observe."""
        called = set() if self.traced is None else {self.model.get_submodule(path) for path in
                                                    self.traced.called}  # fmt: skip
        return any(layer not in called for _, layer in clip_layers(self.model))

    @torch.no_grad()
    def observe(self, images: Tensor, samples: list[DetDataSample]) -> None:
        """Let every part see a batch."""
        if self.first is None:
            self.first = images[:1], samples[:1]
            self.start(images[:1])
        self.held.add(images, samples)
        self.run(images, samples)

    def run(self, images: Tensor, samples: list[DetDataSample]) -> None:
        """Let every part run on a batch, in float or as it is executed just now."""
        if self.dense is not None and not self.boxes and not self.needs_predictions():
            self.dense.run(images)
        else:
            self.predict(images, samples)

    def predict(self, images: Tensor, samples: list[DetDataSample]) -> list[DetDataSample]:
        """Let the detector predict, which leads to everything that is not its dense part."""
        with self.computing():
            return as_detector(self.model).predict(images, samples)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the detector predicts with its parts run in float or as they are executed."""
        with evaluating(self.model), ExitStack() as stack:
            if self.traced is not None:
                stack.enter_context(executing(self.model, self.traced.head, self.dense, self.boxes))
            stack.enter_context(self.modules.observing())
            yield

    def unseen(self) -> list[str]:
        """Names of the clipped layers that no part has run yet."""
        paths = [path for part in self.modules.parts.values() for path in
                 called_layers(part.traced)]  # fmt: skip
        if self.traced is not None:
            paths += called_layers(self.traced.module)
            for box, lowering in zip(self.traced.boxes, self.boxes, strict=True):
                paths += called_layers(box) if lowering.seen else []
        seen = {self.model.get_submodule(path) for path in paths}
        return [name for name, layer in clip_layers(self.model) if layer not in seen]

    @torch.no_grad()
    def stand_in(self) -> None:
        """Give layers that found nothing to do a grid of regions, and masks of every score."""
        if self.first is None or not (unseen := self.unseen()):
            return
        observed = [part.lowering for part in self.modules.parts.values()]
        for lowering in (self.dense, *self.boxes, *observed):
            if lowering is not None and lowering.seen:
                lowering.stop_recording()
        with regions_where_none_are_proposed(self.model), every_score_counts(self.model):
            try:
                self.predict(*self.first)
            except Exception as error:  # what was observed stands
                print_log(f'mmclipq: {len(unseen)} layers such as {unseen[0]} stay in float: '
                          f'{error}', 'current', logging.WARNING)  # fmt: skip
        if found := set(unseen) - set(self.unseen()):
            print_log(
                f'mmclipq: {len(found)} layers such as {min(found)} found nothing to do in '
                'calibration; their ranges are those of regions and scores that stand in',
                'current',
                logging.WARNING,
            )

    @torch.no_grad()
    def look_again(self, executions: Mapping[str, Execution], title: str) -> None:
        """Run parts on the held images, each by an execution of its own, with a progress bar."""
        parts = self.parts
        with ExitStack() as stack:
            for name, execution in executions.items():
                stack.enter_context(parts[name].executing(execution))
            for images, samples in tqdm(self.held.held, desc=title, unit='image', delay=2):
                self.run(images, samples)

    def measure(self, options: CalibrationOptions) -> None:
        """Measure on the held images what the method wants to know beside the statistics.

        What was measured or chosen before is forgotten.
        """
        for part in self.parts.values():
            part.reset()
        if options.method != 'output':
            return
        found = {name: part.output_errors(options.offsets) for name, part in self.parts.items()}
        self.look_again(found, 'errors of outputs')
        for name, part in self.parts.items():
            part.use(found[name])

    def measure_moments(self) -> None:
        """Measure on the held images how inputs of layers belong together, for :meth:`weigh`."""
        self.moments = {name: part.moments() for name, part in self.parts.items()}
        self.look_again(self.moments, 'moments of inputs')

    def weigh(self, rate: float) -> None:
        """Let codes of weights cost little in error plus ``rate`` times their bits.

        Until what was measured is forgotten; :meth:`measure_moments` comes before.
        """
        for name, part in self.parts.items():
            part.weigh(self.moments[name], rate)

    def choose(self, options: CalibrationOptions, left: Mapping[str, str] | None = None) -> None:
        """Choose the range of every tensor with codes, and what biases take back.

        Args:
            options: How ranges are chosen.
            left: Layers that stay in float, by path, and why.
        """
        if self.first is None:
            raise ClipQError('calibration: found no images, wanted at least one batch')
        types: list[TensorType] = []
        for name, part in self.parts.items():
            is_box = part in self.boxes
            part.choose(options, types if is_box else (), left)
            if name == 'dense':
                types = [part.types[unit] for unit in part.plan.levels]
            part.corrections = {}
        if options.bias_correction:
            found = {name: part.mean_errors() for name, part in self.parts.items()}
            self.look_again(found, 'bias correction')
            for name, part in self.parts.items():
                part.corrections = found[name].corrections

    def finish(
        self, options: CalibrationOptions, left: Mapping[str, str] | None = None
    ) -> Quantized:
        """The integer graphs; the arguments are those of :meth:`choose`."""
        self.choose(options, left)
        graph: Int8Graph | None = None
        head: str | None = None
        called: list[str] = []
        if self.dense is not None and self.traced is not None:
            graph = self.dense.emit()
            head, called = self.traced.head, self.traced.called
        boxes = [box.emit() for box in self.boxes]
        modules = [
            Int8Module(part.path, part.form, part.lowering.emit())
            for part in self.modules.parts.values()
        ]
        for part in self.modules.parts.values():
            called = [*called, *called_layers(part.traced)]
        parts = Quantized(graph, head, [], tuple(boxes), tuple(modules))
        kept = self.modules.called
        captured = [path for path in captured_layers(parts.graphs, called) if path not in kept]
        parts.captured = _all_paths(self.model, captured)
        parts.left = self.left | self._left(parts)
        return parts

    def _left(self, parts: Quantized) -> dict[str, str]:
        """Name and reason of what stays in float."""
        left = {} if parts.graph is None else dict(parts.graph.islands)
        named = [(f'boxes {index}', graph) for index, graph in enumerate(parts.boxes)]
        named += [(module.path, module.graph) for module in parts.modules]
        for owner, graph in named:
            left |= {f'{owner}: {name}': reason for name, reason in graph.islands.items()}
        left |= self.modules.refused
        captured = {self.model.get_submodule(path) for path in parts.captured}
        steps = {node.target for graph in parts.graphs for node in graph.nodes
                 if isinstance(node, FloatCall) and node.kind == 'module'}  # fmt: skip
        for name, reason in unclipped_layers(self.model).items():
            if self.model.get_submodule(name) not in captured and name not in steps:
                left[name] = reason
        for name, layer in clip_layers(self.model):
            if layer not in captured and name not in left:
                left[name] = 'never called in calibration'
        return left


def _all_paths(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """``paths``, and behind each the other paths of the same module."""
    shared: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        shared.setdefault(module, []).append(name)
    return list(dict.fromkeys(p for path in paths for p in shared[model.get_submodule(path)]))
