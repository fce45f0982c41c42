"""A detector's dense part and box head as modules of tensors, and the detector around foreign ones.

Libraries convert modules whose inputs and outputs are tensors. mmdet's own code goes on between
them: regions, RoIAlign, decoding of boxes and their suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ...apis.quantize_checkpoint import calibration_batches
from ...detector import executing
from ...lowering.capture import capture

EXAMPLE_SIDE = 128

Function = Callable[..., Sequence[Tensor]]


class Flat(nn.Module):
    """A dense part: float32 images ``(N, 3, H, W)`` to one tuple of tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_flatten(self.module(image))[0])


class BoxHead(nn.Module):
    """A box head behind RoIAlign: float32 ``(K, C, 7, 7)`` to scores and deltas."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.head(features))


@dataclass
class Parts:
    """What is converted, and how its results go together.

    Attributes:
        dense: Backbone, neck and dense head.
        box: The box head; None for a one-stage detector.
        head: Name of the dense head in the detector.
        spec: Structure of the dense part's outputs.
        image: An example of its input.
    """

    dense: nn.Module
    box: nn.Module | None
    head: str | None
    spec: Any
    image: Tensor

    @classmethod
    def of(cls, detector: Any) -> Parts:
        """The parts of a stock detector, which they share their layers with."""
        part = capture(detector)
        image = torch.zeros(1, 3, EXAMPLE_SIDE, EXAMPLE_SIDE)
        with torch.no_grad():
            _, spec = tree_flatten(part.module(image))
        box = BoxHead(detector.roi_head.bbox_head) if part.boxes else None
        return cls(Flat(part.module), box, part.head, spec, image)

    def modules(self) -> dict[str, nn.Module]:
        """The parts by the names of their files."""
        found: dict[str, nn.Module] = {'dense': self.dense}
        return found if self.box is None else {**found, 'box': self.box}

    def executing(
        self, detector: nn.Module, functions: dict[str, Function]
    ) -> AbstractContextManager[None]:
        """Inside, the detector's parts are computed by ``functions`` of the names of files."""
        dense = _Dense(functions['dense'], self.spec)
        boxes = [_Boxes(functions['box'], detector)] if self.box is not None else []
        return executing(detector, self.head, dense, boxes)


class _Dense:
    def __init__(self, function: Function, spec: Any) -> None:
        self.function, self.spec = function, spec

    def run(self, *inputs: Tensor) -> Any:
        return tree_unflatten(list(self.function(*inputs)), self.spec)


class _Boxes:
    def __init__(self, function: Function, detector: Any) -> None:
        self.function = function
        self.extractor = detector.roi_head.bbox_roi_extractor

    def run(self, *inputs: Tensor) -> Any:
        *levels, rois = inputs
        return self.function(self.extractor(levels, rois))


class ForeignDetector(nn.Module):
    """A detector whose parts are computed by functions, with mmdet's ``test_step``."""

    def __init__(self, detector: Any, parts: Parts, functions: dict[str, Function]) -> None:
        super().__init__()
        self.detector, self.parts, self.functions = detector, parts, functions

    @torch.no_grad()
    def test_step(self, data: Any) -> Any:
        with self.parts.executing(self.detector, self.functions):
            return self.detector.test_step(data)


@torch.no_grad()
def calibration_inputs(
    detector: Any, cfg: Config, parts: Parts, count: int | None = None
) -> dict[str, list[Tensor]]:
    """Inputs of the parts on images of the training set, by the names of files.

    ``count`` and draw of the images are by default those of the config's ``clipq.int8`` section.
    """
    detector.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in parts.modules()}

    def note(name: str) -> Any:
        return lambda module, args: found[name].append(args[0].clone())

    handles = [] if parts.box is None else [
        detector.roi_head.bbox_head.register_forward_pre_hook(note('box'))
    ]  # fmt: skip
    try:
        for batch in calibration_batches(cfg, count):
            data = detector.data_preprocessor(batch, False)
            found['dense'].append(data['inputs'])
            detector(**data, mode='predict')
    finally:
        for handle in handles:
            handle.remove()
    return found
