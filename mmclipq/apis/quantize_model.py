"""From a float detector to its integer graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ..detector import Int8Parts, captured_layers, executing, plain_samples
from ..lowering.capture import capture, evaluating
from ..lowering.lower import Lowering
from ..prepare import clip_layers, find_weight_ranges, prepare_model, prepare_options


@dataclass
class Quantized(Int8Parts):
    """A detector's integer graphs and what they leave out.

    Attributes:
        left: Name and reason of everything that stays in float.
    """

    left: dict[str, str] = field(default_factory=dict)


def cannot_be_negative(preprocessor: nn.Module) -> bool:
    """Whether images with pixels from 0 to 255 stay non-negative after the preprocessing."""
    mean = getattr(preprocessor, 'mean', None)
    if not getattr(preprocessor, '_enable_normalize', False) or mean is None:
        return getattr(preprocessor, 'pad_value', 0) >= 0
    return bool((mean <= 0).all()) and preprocessor.pad_value >= 0


def preprocessed(
    model: nn.Module, batches: Iterable[Any]
) -> Iterator[tuple[Tensor, list[DetDataSample]]]:
    """Images ``(N, C, H, W)`` and data samples of batches from a dataloader, or of bare images."""
    for batch in batches:
        if isinstance(batch, Tensor):
            yield batch.to(next(model.parameters()).device), plain_samples(batch)
        else:
            data = model.data_preprocessor(batch, False)
            yield data['inputs'], data['data_samples']


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    clipq: Mapping[str, Any] | None = None,
    method: str = 'mse',
    offsets: bool = True,
) -> Quantized:
    """Calibrate and lower a built float detector; the detector itself stays executable in float.

    Args:
        model: A detector with its weights loaded, prepared (:func:`mmclipq.prepare_model`) or
            not. If not, it is prepared with the layer options in ``clipq``.
        batches: Calibration data: what a dataloader gives, or preprocessed float32 images.
        clipq: The ``clipq`` section of a config.
        method: How activation ranges are chosen, ``'mse'`` or ``'max'``.
        offsets: Whether tensors that reach a little below zero may have uint8 codes with an offset.

    Raises:
        ClipQError: for a detector that cannot be captured, NaN weights, no images, and so on.
    """
    if next(clip_layers(model), None) is None:
        prepare_model(model, **prepare_options(clipq))
    find_weight_ranges(model)
    traced = capture(model)
    dense = Lowering(traced.module, cannot_be_negative(model.data_preprocessor), traced.levels)
    features_from_zero = all(unit.non_negative for unit in dense.plan.levels)
    boxes = [Lowering(part, features_from_zero) for part in traced.boxes]
    for images, samples in preprocessed(model, batches):
        if not boxes:
            dense.run(images)
            continue
        # The detector's own prediction leads from the features to the regions of every stage.
        with torch.no_grad(), evaluating(model), executing(model, traced.head, dense, boxes):
            model.predict(images, samples)
    graph = dense.finish(method, offsets=offsets)
    features = graph.outputs['features'] if traced.levels else ()
    levels = [graph.tensors[ref.name] for ref in features[: traced.levels]]
    graphs = graph, *(box.finish(method, levels, offsets) for box in boxes)
    left = {**traced.left_out}
    for part in graphs:
        left |= part.islands
    captured = captured_layers(graphs, traced.called)
    left |= _uncaptured_heads(model, captured)
    return Quantized(graph, traced.head, captured, graphs[1:], left)


def _uncaptured_heads(model: nn.Module, captured: list[str]) -> dict[str, str]:
    """Parts of the RoI head with weights that no graph computes."""
    reason = 'its layers run on dequantized features'
    return {
        f'roi_head.{name}': reason
        for name, part in getattr(model, 'roi_head', nn.Module()).named_children()
        if next(part.parameters(), None) is not None
        and not any(path.startswith(f'roi_head.{name}.') for path in captured)
    }
