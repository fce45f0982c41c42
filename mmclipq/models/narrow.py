"""A stock detector some of whose layers have fewer channels than its config says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmdet.registry
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ClipQError
from ..registry import MODELS

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def widths_of(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """First two sizes of the weights, one of a norm's, that differ in ``state``, by layer path.

    This is what :func:`narrow` takes.
    """
    found = {}
    for name, module in model.named_modules():
        weight = state.get(f'{name}.weight')
        if weight is not None and weight.shape != module.weight.shape:
            found[name] = list(weight.shape[:2])
    return found


def narrow(model: nn.Module, widths: Mapping[str, Sequence[int]]) -> None:
    """Give layers fewer channels, in place; the Parameters stay, their values are the first ones.

    Args:
        model: Any detector.
        widths: First two sizes of the weights of convolutions and linear layers, and one of those
            of norms, by layer path. A depthwise convolution stays one.

    Raises:
        ClipQError: for a path or a width that the model has not, before anything is changed.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    for path, sizes in widths.items():
        layer: Any = layers.get(path)
        wanted = 1 if isinstance(layer, (_BatchNorm, nn.GroupNorm)) else 2
        if wanted == 2 and not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
            raise ClipQError(
                f'widths: found {path!r}, wanted a convolution, a linear layer or a norm'
            )
        old = layer.weight.shape[:wanted]
        fits = len(sizes) == wanted and all(
            isinstance(new, int) and 0 < new <= most for new, most in zip(sizes, old, strict=True)
        )
        if not fits:
            raise ClipQError(
                f'widths: found {list(sizes)} for {path!r}, wanted at most {list(old)}'
            )
    for path, sizes in widths.items():
        _narrow(layers[path], sizes)


def _narrow(layer: Any, sizes: Sequence[int]) -> None:
    if isinstance(layer, (_BatchNorm, nn.GroupNorm)):
        if isinstance(layer, nn.GroupNorm):
            layer.num_channels = sizes[0]
        else:
            layer.num_features = sizes[0]
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            _cut(layer, name, sizes[0])
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = sizes
        outputs = sizes[0]
    else:
        if layer.groups == layer.in_channels > 1:
            layer.groups = sizes[0]
        if layer.transposed:
            layer.in_channels, layer.out_channels = sizes[0], sizes[1] * layer.groups
        else:
            layer.out_channels, layer.in_channels = sizes[0], sizes[1] * layer.groups
        outputs = layer.out_channels
    layer.weight.data = layer.weight.data[: sizes[0], : sizes[1]].clone()
    _cut(layer, 'bias', outputs)


def _cut(layer: nn.Module, name: str, size: int) -> None:
    value = getattr(layer, name, None)
    if isinstance(value, torch.Tensor):
        value.data = value.data[:size].clone()


@MODELS.register_module(name='NarrowDetector')
def narrow_detector(detector: Mapping[str, Any], widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """The stock detector of a ``model`` section, narrowed; it is of the stock class.

    ``tools/prune.py`` writes such sections.

    Args:
        detector: The ``model`` section.
        widths: As for :func:`narrow`.

    Raises:
        ClipQError: for a path or a width that the detector has not.
    """
    model: nn.Module = mmdet.registry.MODELS.build(detector)
    narrow(model, widths)
    return model
