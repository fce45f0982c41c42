"""Turns a traced, clipped detector part and calibration images into integer graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from .. import fixed_point as fp
from ..calibration.observer import OctaveHistogram
from ..calibration.options import CalibrationOptions
from ..calibration.range_search import CodeRange, relative_error
from ..errors import ClipQError
from ..graph import ir
from .capture import evaluating
from .execution import Execution
from .lower import Emitter
from .measured import MeanErrors, OutputErrors, near_ranges
from .moments import Moments
from .plan import PRODUCTS, Unit, make_plan
from .ranges import RangeGroup, Recorder, choose_types, range_groups
from .simulation import Simulation
from .weights import WeightCodes


class Lowering:
    """Makes integer graphs of a part: plan, observe calibration data, measure, choose, emit.

    Args:
        module: From :func:`mmclipq.lowering.capture.capture`.
        non_negative_input: Whether no preprocessed pixel can be negative, which gives the image
            uint8 codes.
        levels: How many of the part's features leave as codes of one range, for RoIAlign.
        levels_read: How many of its inputs, from the first on, arrive as such codes.

    Attributes:
        plan: Its units; those of the last :meth:`choose`.
        types: Types of its tensors with codes by unit, once they are chosen.
        weights: Its weight codes.
        chosen: Ranges that stand, whatever the method, by the groups' keys.
        corrections: What each product lacks on average, by fx name; see :class:`MeanErrors`.

    Raises:
        ClipQError: naming the layer with NaN weights.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        non_negative_input: bool = False,
        levels: int = 0,
        levels_read: int = 0,
    ) -> None:
        self.module = module
        self._planned = partial(make_plan, module, non_negative_input, levels)
        self._levels_read = levels_read
        self.plan = self._planned()
        for unit in self.plan.units:
            if unit.layer is not None:
                fp.check_finite(unit.layer.weight, f'{unit.target}.weight')
        self._recorder = Recorder(module, self.plan)
        self._execution: Execution = self._recorder
        self.types: dict[Unit, ir.TensorType] = {}
        self._given: dict[Unit, ir.TensorType] = {}
        self.reset()

    @torch.no_grad()
    def run(self, *inputs: Tensor) -> Any:
        """Float outputs of the part for one batch, whose tensors join the statistics.

        Inside of :meth:`executing`, what that execution gives.

        Raises:
            ClipQError: if a tensor holds NaN or infinity.
        """
        with evaluating(self.module):
            return self._execution.run(*inputs)

    @contextmanager
    def executing(self, execution: Execution) -> Iterator[None]:
        """Inside, ``execution`` runs the part and nothing joins the statistics."""
        before, self._execution = self._execution, execution
        try:
            yield
        finally:
            self._execution = before

    @property
    def seen(self) -> bool:
        """Whether it has run."""
        return self._recorder.batches > 0

    def stop_recording(self) -> None:
        """Keep what it runs on from now on out of the statistics."""
        self._recorder.recording = False

    def reset(self) -> None:
        """Forget what was measured and chosen, but not the statistics."""
        self.weights = WeightCodes()
        self.chosen: dict[str, CodeRange] = {}
        self.corrections: dict[str, Tensor] = {}

    def histograms(self) -> dict[Unit, OctaveHistogram]:
        """Statistics by unit of the plan."""
        return {unit: self._recorder.of_node[unit.node] for unit in self.plan.units
                if unit.wants_codes}  # fmt: skip

    def _inputs(self) -> list[Unit]:
        return [unit for unit in self.plan.units if unit.kind == 'input']

    def groups(self, offsets: bool = True) -> list[RangeGroup]:
        """Tensors whose range is to be chosen, those that share one together."""
        given = dict.fromkeys(self._inputs()[: self._levels_read], ir.FLOAT)
        return list(range_groups(self.plan, given, offsets))

    def output_errors(self, offsets: bool = True) -> OutputErrors:
        """An execution that measures what ranges do to outputs, for :meth:`use`."""
        histograms = self.histograms()
        tried = {
            group: near_ranges(group, group.statistics(histograms))
            for group in self.groups(offsets)
        }
        return OutputErrors(self.module, self.plan, tried)

    def use(self, errors: OutputErrors) -> None:
        """Let the ranges with the least error of the outputs stand, weights' included."""
        self.weights = WeightCodes(errors.energies)
        histograms, users = self.histograms(), self.plan.users()
        for group, ranges in errors.tried.items():
            beside = any(
                user.kind not in PRODUCTS or unit in user.operands[1:]
                for unit in group.units
                for user in users[unit]
                if user not in group.units
            )
            own = [
                relative_error(group.statistics(histograms), range_) if beside else 0.0
                for range_ in ranges
            ]
            if (best := errors.best(group, own)) is not None:
                self.chosen[group.key] = best

    def moments(self) -> Moments:
        """An execution that measures second moments of layers' inputs, for :meth:`weigh`."""
        return Moments(self.module, self.plan)

    def weigh(self, measured: Moments, rate: float) -> None:
        """Let codes of weights cost little in error, which later ones take back, plus ``rate``
        times their bits.
        """
        self.weights = WeightCodes(measured.energies, rate, measured.blocks, measured.powers)

    def choose(
        self,
        options: CalibrationOptions,
        input_types: Sequence[ir.TensorType] = (),
        left: Mapping[str, str] | None = None,
    ) -> None:
        """Choose the range of every tensor with codes.

        Args:
            options: How ranges are chosen.
            input_types: Types of the first inputs, where they arrive as codes.
            left: Layers that stay in float, by path, and why.

        Raises:
            ClipQError: if nothing was observed, or a value is out of the range of exponents.
        """
        if not self._recorder.batches:
            missing = 'regions' if input_types else 'images'
            raise ClipQError(f'calibration: found no {missing}, wanted at least one batch')
        self.plan = self._planned(left or {})
        self._given = dict(zip(self._inputs(), input_types, strict=False))
        groups = list(range_groups(self.plan, self._given, options.offsets))
        self.types = choose_types(
            self.plan, groups, self.histograms(), options, self._given, self.chosen
        )

    def mean_errors(self) -> MeanErrors:
        """An execution that measures ``corrections`` for the ranges chosen."""
        return MeanErrors(self.module, self.plan, self.types, self.weights)

    def simulation(self) -> Simulation:
        """An execution in float32 with the rounding of the graph of the ranges chosen."""
        return Simulation(self.module, self.plan, self.types, self.weights, self.corrections)

    def emit(self) -> ir.Int8Graph:
        """The integer graph of the ranges chosen.

        Raises:
            CaptureError: naming the step that can be neither int8 nor a float island.
        """
        emitter = Emitter(
            self.module, self.plan, self.types, self._given, self.weights, self.corrections
        )
        return emitter.run()

    def finish(self, options: CalibrationOptions | None = None) -> ir.Int8Graph:
        """Choose and emit, for a part that stands alone."""
        self.choose(options or CalibrationOptions())
        return self.emit()


def lower(
    module: fx.GraphModule,
    images: Iterable[Tensor],
    method: str = 'mse',
    non_negative_input: bool = False,
) -> ir.Int8Graph:
    """The integer graph of a traced part that reads nothing but images.

    Args:
        module: From :func:`mmclipq.lowering.capture.capture`.
        images: Batches of preprocessed images, float32 ``(N, C, H, W)``.
        method, non_negative_input: As for :class:`Lowering`, whose errors are raised.
    """
    lowering = Lowering(module, non_negative_input)
    for batch in images:
        lowering.run(batch)
    return lowering.finish(CalibrationOptions(method))
