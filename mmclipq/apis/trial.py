"""Lets an int8 detector predict on shapes alone, so that what does not fit shows at once.

The detector's own code runs on an image of zeros; in place of a backend stands what follows shapes
through a graph and answers with noise. Memory and work are measured at the size of the images that
the file's own test pipeline makes, without taking either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import as_detector
from ..detector import Int8Parts, plain_samples
from ..errors import ClipQError, first_line
from ..graph.container import ArtifactError
from ..graph.inference import Inference, Unknown, meta, noise
from ..graph.ir import Input, Int8Graph
from ..graph.limits import LimitError, Limits

_SMALL = 128
"""Larger side of the first image that is tried."""
_MULTIPLE = 32
_REGIONS = 1000
"""Regions of one image, as stock configs propose."""


class ShapeExecutor:
    """Answers as a backend would, with noise."""

    def __init__(self, graph: Int8Graph, detector: nn.Module, limits: Limits) -> None:
        self._graph, self._detector, self._limits = graph, detector, limits

    def run(self, *inputs: Any) -> Any:
        """Noise in the shapes of the graph's outputs, so that there are boxes."""
        given = [meta(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs]
        found = Inference(self._graph, given, self._detector, self._limits).outputs
        device = next((x.device for x in inputs if isinstance(x, Tensor)), torch.device('cpu'))
        return noise(found, device)


@contextmanager
def _standing_in(detector: nn.Module, parts: Int8Parts, limits: Limits) -> Iterator[None]:
    """Inside, shapes alone go through the graphs."""
    places: list[tuple[Any, str, Any]] = []
    if parts.graph is not None:
        places.append((detector, 'int8_backend', ShapeExecutor(parts.graph, detector, limits)))
    if parts.boxes:
        boxes = [ShapeExecutor(graph, detector, limits) for graph in parts.boxes]
        places.append((detector.roi_head, 'int8_boxes', boxes))
    for part in parts.modules:
        executor = ShapeExecutor(part.graph, detector, limits)
        places.append((detector.get_submodule(part.path), 'int8_graph', executor))
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            vars(owner)[name] = value
        yield
    finally:
        for owner, name, value in before:
            vars(owner)[name] = value


def _rounded(size: Sequence[int], multiple: int) -> tuple[int, int]:
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def _measure(
    detector: nn.Module, parts: Int8Parts, channels: int, size: tuple[int, int], limits: Limits
) -> None:
    """Return if the dense part and the boxes stay within the limits for an image of ``size``."""
    if parts.graph is None:
        return
    try:
        image = meta((1, channels, *size))
        outputs = Inference(parts.graph, [image], detector, limits, run=False).outputs
        for graph in parts.boxes:
            count = sum(isinstance(node, Input) for node in graph.nodes) - 1
            levels = list(outputs['features'])[:count]
            regions = meta((_REGIONS, 5))
            Inference(graph, [*levels, regions], detector, limits, run=False)
    except Unknown:  # a step that has no form without memory: the small image tells enough
        return


def check_prediction(
    detector: nn.Module,
    parts: Int8Parts,
    size: tuple[int, int],
    path: str | os.PathLike,
    limits: Limits,
) -> None:
    """Return if the detector can predict: every shape fits, within the limits.

    Args:
        detector: An :class:`mmclipq.Int8Detector`.
        parts: Its graphs.
        size: Height and width of the images that its pipeline makes.
        path: The file that it comes from.
        limits: On memory and work.

    Raises:
        ArtifactError: naming the file, and the node where there is one.
        LimitError: likewise.
    """
    preprocessor = getattr(detector, 'data_preprocessor', None)
    mean = getattr(preprocessor, 'mean', None)
    channels = mean.numel() if isinstance(mean, Tensor) else 3
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    if not isinstance(divisor, int) or divisor < 1:
        raise ArtifactError(
            f'{path}: found pad_size_divisor {str(divisor)[:80]}, wanted a whole number from 1'
        )
    size = _rounded(size, divisor)
    limits.check('pixels', size[0] * size[1], f'{path}: images, padded to {divisor} pixels')
    share = min(1.0, _SMALL / max(size))
    small = _rounded([max(1, round(side * share)) for side in size], max(_MULTIPLE, divisor))
    device = next((p.device for p in detector.parameters()), torch.device('cpu'))
    try:
        _measure(detector, parts, channels, size, limits)
        with _standing_in(detector, parts, limits), torch.no_grad():
            try:
                _predict(detector, torch.zeros(1, channels, *small, device=device))
            except LimitError:
                raise
            except Exception:  # perhaps too small for it
                if small == size:
                    raise
                _predict(detector, torch.zeros(1, channels, *size, device=device))
    except LimitError as error:
        raise LimitError(f'{path}: {error}') from error
    except ClipQError as error:
        raise ArtifactError(f'{path}: {error}') from error
    except Exception as error:
        reason = first_line(error)
        raise ArtifactError(
            f'{path}: found a {type(detector).__name__} that fails on an image ({reason}), wanted '
            'one that predicts; export it again with the versions that are installed here'
        ) from error


def _predict(detector: nn.Module, images: Tensor) -> None:
    as_detector(detector).predict(images, plain_samples(images))
