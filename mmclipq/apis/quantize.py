"""From a float detector to its integer graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..detector import captured_layers
from ..graph.capture import capture
from ..graph.ir import Int8Graph
from ..graph.lower import lower
from ..prepare import clip_layers, find_weight_ranges, prepare_model, prepare_options


@dataclass
class Quantized:
    """A detector's integer part.

    Attributes:
        graph: What the backends execute.
        head: Name of the dense head inside the graph, or None.
        captured: Paths of the layers that the graph computes.
        left: Name and reason of everything that stays in float.
    """

    graph: Int8Graph
    head: str | None
    captured: list[str]
    left: dict[str, str]


def cannot_be_negative(preprocessor: nn.Module) -> bool:
    """Whether images with pixels from 0 to 255 stay non-negative after the preprocessing."""
    mean = getattr(preprocessor, 'mean', None)
    if not getattr(preprocessor, '_enable_normalize', False) or mean is None:
        return getattr(preprocessor, 'pad_value', 0) >= 0
    return bool((mean <= 0).all()) and preprocessor.pad_value >= 0


def _image_batches(model: nn.Module, batches: Iterable[Any]) -> Iterable[Tensor]:
    for batch in batches:
        if isinstance(batch, Tensor):
            yield batch
        else:
            yield model.data_preprocessor(batch, False)['inputs']


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    clipq: Mapping[str, Any] | None = None,
    method: str = 'mse',
) -> Quantized:
    """Calibrate and lower a built float detector; the detector itself stays executable in float.

    Args:
        model: A detector with its weights loaded, prepared (:func:`mmclipq.prepare_model`) or
            not. If not, it is prepared with the layer options in ``clipq``.
        batches: Calibration data: what a dataloader gives, or preprocessed float32 images.
        clipq: The ``clipq`` section of a config.
        method: How activation ranges are chosen, ``'mse'`` or ``'max'``.

    Raises:
        ClipQError: for a detector that cannot be captured, NaN weights, no images, and so on.
    """
    if next(clip_layers(model), None) is None:
        prepare_model(model, **prepare_options(clipq))
    find_weight_ranges(model)
    traced = capture(model)
    graph = lower(
        traced.module,
        _image_batches(model, batches),
        method,
        cannot_be_negative(model.data_preprocessor),
    )
    left = dict(graph.islands)
    if traced.left_out:
        left['dense head'] = traced.left_out
    if hasattr(model, 'roi_head'):
        left['roi_head'] = 'its layers run on dequantized features'
    return Quantized(graph, traced.head, captured_layers(graph, traced.called), left)
