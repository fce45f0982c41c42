"""Turns the layers of any built detector into clipped ones, in place, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from mmcv.cnn import ConvWS2d
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .attention import Projection, join_attention, split_attention, whole_reason
from .calibration.observer import OctaveHistogram
from .errors import ClipQError
from .layers import (
    ClipConv,
    ClipConvAdaptive,
    ClipConvTranspose,
    ClipConvWS,
    ClipLinear,
    ClipMixin,
    ClipProjection,
)
from .layers.clip_mixin import parse_range

CLIPPED_CLASSES: dict[type[nn.Module], type[ClipMixin]] = {
    nn.Conv2d: ClipConv,
    wrappers.Conv2d: ClipConv,
    Conv2dAdaptivePadding: ClipConvAdaptive,
    ConvWS2d: ClipConvWS,
    nn.ConvTranspose2d: ClipConvTranspose,
    wrappers.ConvTranspose2d: ClipConvTranspose,
    nn.Linear: ClipLinear,
    wrappers.Linear: ClipLinear,
    Projection: ClipProjection,
    NonDynamicallyQuantizableLinear: ClipLinear,
}
"""Layer classes that are swapped. The match is exact: a subclass may compute something else."""

PREDICTION_LAYERS = (
    '*.convs_pred.*',
    '*_cls',
    '*_reg',
    '*.fc_cls',
    '*.fc_reg',
    '*.conv_cls',
    '*.conv_reg',
    '*.conv_centerness',
    '*_centerness',
    '*_cls.?',
    '*_reg.?',
    '*.cls_convs.?.?',
    '*.reg_convs.?.?',
    '*.multi_level_conv_*.?',
)
"""Names that MMDetection gives to the layers whose outputs are the predictions."""

_OPTIONS = {'input_range', 'weight_range', 'round', 'skip'}
_SECTION = ('input_range', 'weight_range', 'round', 'rules', 'first_layer', 'last_layer')


def prepare_options(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those entries of a config's ``clipq`` section that :func:`prepare_model` takes."""
    return {key: section[key] for key in _SECTION if key in section} if section else {}


@dataclass
class PrepareReport:
    """What :func:`prepare_model` did.

    Attributes:
        clipped: Names of the layers that are clipped now, in registration order.
        left: Name and reason of every layer with weights that stays as it is.
    """

    clipped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f'{len(self.clipped)} layers clipped, {len(self.left)} left as they are']
        lines += [f'  {name}: {reason}' for name, reason in self.left.items()]
        return '\n'.join(lines)


def clip_layers(model: nn.Module) -> Iterator[tuple[str, ClipMixin]]:
    """Name and layer of every clipped layer, a shared layer once, in registration order."""
    for name, module in model.named_modules():
        if isinstance(module, ClipMixin):
            yield name, module


def _reason_to_leave(module: nn.Module, owner: nn.Module | None) -> str | None:
    """Why ``module`` stays in float; None if it is clipped or has no weight matrix."""
    if isinstance(owner, nn.MultiheadAttention) and (reason := whole_reason(owner)) is not None:
        return f'{reason}, and reads the weight without calling the layer'
    if type(module) in CLIPPED_CLASSES or isinstance(module, ClipMixin):
        return None
    weight = module._parameters.get('weight')
    if weight is None or weight.dim() < 2:
        return None
    kind = type(module).__name__
    if 'DeformConv' in kind:
        return f'{kind} samples its input at learned offsets, which no int8 convolution does'
    return f'{kind} is no plain Conv2d or Linear'


def unclipped_layers(model: nn.Module) -> dict[str, str]:
    """Name and reason of every layer with a weight matrix that :func:`prepare_model` leaves."""
    owners = {id(child): module for module in model.modules() for child in module.children()}
    reasons = {
        name: _reason_to_leave(module, owners.get(id(module)))
        for name, module in model.named_modules()
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def check_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a layer's options: ``input_range``, ``weight_range``, ``round`` or ``skip``.

    Raises:
        ClipQError: naming ``where`` and an unknown option or a range that is no power of two.
    """
    if not isinstance(options, Mapping):
        raise ClipQError(f'{where}: found {options!r}, wanted a dict of {sorted(_OPTIONS)}')
    unknown = set(options) - _OPTIONS
    for name in ('input_range', 'weight_range'):
        if name in options:
            parse_range(options[name], f'{where}: {name}')
    if unknown:
        raise ClipQError(f'{where}: found {sorted(unknown)}, wanted options of {sorted(_OPTIONS)}')
    return dict(options)


def check_rule(rule: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Layer-name pattern and options of a rule.

    Raises:
        ClipQError: if there is no pattern, or an option is wrong.
    """
    options = dict(rule) if isinstance(rule, Mapping) else {}
    pattern = options.pop('pattern', None)
    if not isinstance(pattern, str):
        raise ClipQError(f"rules: found {rule} without 'pattern', wanted a layer-name pattern")
    return pattern, check_options(options, f'rule {pattern!r}')


def layer_options(
    names: Sequence[str],
    rules: Sequence[Mapping[str, Any]] = (),
    first_layer: Mapping[str, Any] | None = None,
    last_layer: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> dict[str, dict[str, Any]]:
    """Options of each named layer: defaults, then first/last layer, then ``rules`` in order.

    Raises:
        ClipQError: for an unknown option, or a pattern that matches no layer.
    """
    options = {name: check_options(defaults, 'clipq') for name in names}
    if first_layer and names:
        options[names[0]].update(check_options(first_layer, 'first_layer'))
    if last_layer:
        last = [n for n in names if any(fnmatchcase(n, p) for p in PREDICTION_LAYERS)]
        if not last:
            raise ClipQError(
                'last_layer: found no layer with a prediction name that MMDetection uses, '
                'wanted one; write a rule with a pattern instead'
            )
        for name in last:
            options[name].update(check_options(last_layer, 'last_layer'))
    for rule in rules:
        pattern, changes = check_rule(rule)
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ClipQError(
                f'rules: found no layer named like {pattern!r}, wanted at least one; '
                f'names look like {list(names[:3])}'
            )
        for name in matched:
            options[name].update(changes)
    return options


def prepare_model(
    model: nn.Module,
    input_range: float | str = 'auto',
    weight_range: float | str = 'auto',
    round: bool = False,
    rules: Sequence[Mapping[str, Any]] = (),
    first_layer: Mapping[str, Any] | None = None,
    last_layer: Mapping[str, Any] | None = None,
) -> PrepareReport:
    """Swap every plain convolution and linear of ``model`` for its clipped twin, in place.

    The layers stay the same objects with the same Parameters, hooks and state-dict keys; only
    their class changes, so layers shared between pyramid levels stay shared and an optimizer or
    a DDP wrapper made before keeps working. The packed projections of multi-head attention become
    three layers that read rows of the one Parameter. :func:`restore_model` undoes it.

    Args:
        model: Any detector, built, on any device.
        input_range: Half width of the input ranges, a power of two, or ``'auto'``.
        weight_range: The same for the weights.
        round: Also round to the grid while training, straight through.
        rules: Dicts with a layer-name ``pattern`` (shell style, ``'neck.*'``) and any of
            ``input_range``, ``weight_range``, ``round``, ``skip=True``; later rules win.
        first_layer: Options of the first layer in registration order.
        last_layer: Options of the layers named in :data:`PREDICTION_LAYERS`.

    Raises:
        ClipQError: for a range that is no power of two, an unknown option, a pattern without a
            match, or a model without any layer to clip. The model is then unchanged.
    """
    split = split_attention(model)
    report = PrepareReport(left=unclipped_layers(model))
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name in report.left:
            continue
        if type(module) in CLIPPED_CLASSES or isinstance(module, ClipMixin):
            candidates[name] = module
    try:
        if not candidates:
            raise ClipQError(
                f'{type(model).__name__}: found no plain Conv2d or Linear, wanted at least one to '
                'clip'
            )
        ranges = {'input_range': input_range, 'weight_range': weight_range}
        options = layer_options(
            list(candidates), rules, first_layer, last_layer, round=round, **ranges
        )
    except ClipQError:
        join_attention(split)
        raise
    for name, module in candidates.items():
        if isinstance(module, ClipMixin):
            # Built or prepared as a clipped layer: its own ranges stand.
            report.clipped.append(name)
        elif options[name].pop('skip', False):
            report.left[name] = 'skipped by a rule'
        else:
            CLIPPED_CLASSES[type(module)].adopt(module, **options[name])
            report.clipped.append(name)
    return report


def restore_model(model: nn.Module) -> None:
    """Undo :func:`prepare_model`: every layer is of its stock class again."""
    for _, layer in list(clip_layers(model)):
        layer.release()
    join_attention(model.modules())


def ranges_state(model: nn.Module) -> dict[str, tuple[int | None, int | None]]:
    """Input and weight exponent of every clipped layer by name, None where still open."""
    return {
        name: (layer.input_exponent, layer.weight_exponent) for name, layer in clip_layers(model)
    }


def load_ranges_state(model: nn.Module, state: Mapping[str, tuple[int | None, int | None]]) -> None:
    """Set the exponents that :func:`ranges_state` returned.

    Raises:
        ClipQError: if the layer names differ.
    """
    layers = dict(clip_layers(model))
    if layers.keys() != state.keys():
        odd = sorted(layers.keys() ^ state.keys())
        raise ClipQError(
            f'found clip ranges for other layers than the model has: {odd[:3]} '
            f'({len(odd)} in all); wanted the same clipq rules as in training'
        )
    for name, (input_exponent, weight_exponent) in state.items():
        layers[name].input_exponent = input_exponent
        layers[name].weight_exponent = weight_exponent


def find_weight_ranges(model: nn.Module) -> None:
    """Set every open weight range to the power of two that holds the current weights."""
    for name, layer in clip_layers(model):
        layer.find_weight_range(f'{name}.weight')


def start_input_observation(model: nn.Module) -> int:
    """Let every layer with an open input range collect its inputs; returns how many do."""
    open_layers = [(n, layer) for n, layer in clip_layers(model) if layer.input_exponent is None]
    for name, layer in open_layers:
        layer.observer = OctaveHistogram(f'input of {name}')
    return len(open_layers)


def finish_input_observation(model: nn.Module, percentile: float) -> None:
    """Set the open input ranges from what was collected, the same on every rank.

    A layer that no batch reached keeps its open range, which means that it does not clip.
    """
    for _, layer in clip_layers(model):
        if layer.observer is not None:
            layer.observer.all_reduce()
            if layer.observer.count:
                layer.input_exponent = layer.observer.percentile_exponent(percentile)
            layer.observer = None
