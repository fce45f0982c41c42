"""What a row of the benchmark executes, in float or int8, on the device of the images.

That is the dense part, the regions of a two-stage detector, and the whole way to boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmengine.config import Config
from torch import Tensor, nn

from .._compat import as_detector, load_checkpoint
from ..apis import build_detector, load_int8
from ..backends import Backend
from ..detector import Int8Detector, executing
from ..errors import ClipQError
from ..lowering.capture import Captured, capture

Run = Callable[[], Any]
Record = Callable[[Run], tuple[Run, Any]]
"""From a function without arguments to its recording: what repeats it, and its results, which every
repetition writes anew."""


@dataclass(frozen=True)
class Setting:
    """What is executed: float32 images ``(N, C, H, W)``, where they lie, on so many threads."""

    cfg: Config
    images: Tensor
    threads: int

    def __str__(self) -> str:
        gpu = self.images.is_cuda
        return f'{"GPU" if gpu else _number(self.threads, "thread")}, batch {len(self.images)}'

    def regions(self) -> Tensor:
        """Regions ``(K, 5)`` of all sizes, as many of each image as the config's RPN proposes."""
        count = self.cfg.model.test_cfg.rpn.max_per_img
        generator = torch.Generator().manual_seed(0)
        number, _, rows, columns = self.images.shape
        frame = torch.tensor([columns, rows], dtype=torch.float32)
        of_frame = (number * count, 2)
        # Every octave from 16 pixels to the whole image gets its share, so every level does.
        sides = 16 * (frame / 16) ** torch.rand(of_frame, generator=generator)
        first = (frame - sides) * torch.rand(of_frame, generator=generator)
        image = torch.arange(number).repeat_interleave(count)[:, None]
        return torch.cat([image, first, first + sides], dim=1).to(self.images.device)


def _number(count: int, noun: str) -> str:
    return f'{count} {noun}{"s" * (count != 1)}'


class _Extractor(nn.Module):
    """RoIAlign of a float extractor in the features' dtype, levels chosen in float32.

    Args:
        stock: mmdet's extractor, one level for each region.
        rois: If given, forward takes these alone. Their levels are found here, because no
            recording holds a decision.
    """

    def __init__(self, stock: BaseRoIExtractor, rois: Tensor | None) -> None:
        super().__init__()
        self.stock = stock
        self.rows = None if rois is None else self._rows(rois)

    def _rows(self, rois: Tensor) -> list[Tensor]:
        """Numbers of the regions of each level."""
        levels = self.stock.map_roi_levels(rois, self.stock.num_inputs)
        return [torch.nonzero(levels == n).flatten() for n in range(self.stock.num_inputs)]

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        size = self.stock.roi_layers[0].output_size
        out = features[0].new_empty(len(rois), self.stock.out_channels, *size)
        for level, rows in enumerate(self.rows or self._rows(rois)):
            if len(rows):
                # mmcv's kernel reads channels first.
                given = features[level].contiguous()
                out[rows] = self.stock.roi_layers[level](given, rois[rows].to(given.dtype))
        return out


@dataclass(frozen=True)
class FloatWay:
    """How PyTorch executes a detector in float.

    Attributes:
        dtype: Other than float32: batch norms are folded, and channels lie last, as the strongest
            rivals have it.
        compiled: Mode of ``torch.compile``; empty without it.
        record: Records what runs, for replays; None without.
    """

    dtype: torch.dtype = torch.float32
    compiled: str = ''
    record: Record | None = None

    def stock(self, setting: Setting, path: Path) -> nn.Module:
        """The float detector with the parameters in ``path``."""
        stock = build_detector(setting.cfg.model).eval()
        stock.load_state_dict(load_checkpoint(path))
        if self.dtype != torch.float32:
            stock = fuse_conv_bn(stock).to(self.dtype, memory_format=torch.channels_last)
        return stock.to(setting.images.device)

    def converted(self, x: Tensor) -> Tensor:
        """Images or features as the way wants them; regions stay as they are."""
        if self.dtype == torch.float32 or x.dim() != 4:
            return x
        return x.to(self.dtype, memory_format=torch.channels_last)

    def executed(self, module: nn.Module, *examples: Tensor) -> Callable[..., Any]:
        """``module`` as a function of its inputs; a recorded one takes shapes of ``examples``."""
        function: Callable[..., Any] = module
        if self.compiled:
            torch._inductor.config.freezing = True
            function = torch.compile(module, mode=self.compiled, dynamic=False)
        if self.record is None:
            return lambda *inputs: function(*map(self.converted, inputs))
        held = [self.converted(x) for x in examples]
        replay, results = self.record(lambda: function(*held))

        def run(*inputs: Tensor) -> Any:
            for own, given in zip(held, inputs, strict=True):
                if own is not given:
                    own.copy_(given)
            replay()
            return results

        return run

    def boxes(self, part: Captured, rois: Tensor | None = None) -> tuple[nn.Module, ...]:
        """Box parts of ``part``; if ``rois`` are given, for these alone where decisions cost."""
        if self == FloatWay():
            return part.boxes
        fixed = rois if self.record or self.compiled else None
        for box in part.boxes:
            for name, module in list(box.named_modules()):
                if isinstance(module, BaseRoIExtractor):
                    owner, _, leaf = name.rpartition('.')
                    setattr(box.get_submodule(owner), leaf, _Extractor(module, fixed))
        return part.boxes

    def dense(self, setting: Setting, path: Path) -> Run:
        """What executes the dense part once."""
        run = self.executed(capture(self.stock(setting, path)).module, setting.images)
        return lambda: run(setting.images)

    def regions(self, setting: Setting, path: Path) -> Run:
        """What executes RoIAlign and box head of each stage once, on the setting's regions."""
        part = capture(self.stock(setting, path))
        rois = setting.regions()
        levels = part.module(self.converted(setting.images))['features'][: part.levels]
        runs = [self.executed(box, *levels, rois) for box in self.boxes(part, rois)]
        return lambda: [run(*levels, rois) for run in runs]

    def whole(self, setting: Setting, path: Path) -> Any:
        """What has mmdet's ``predict``; a recorded one takes images of the setting's shape."""
        stock = self.stock(setting, path)
        return stock if self == FloatWay() else _Detector(self, stock, setting.images)


class FloatPart:
    """A part as the detector calls it; what it decodes is float32, as mmdet's boxes are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def run(self, *inputs: Tensor) -> Any:
        return _decodable(self.function(*inputs))


def _decodable(tree: Any) -> Any:
    """Tensors in float32, but for the features, which no decoding reads."""
    if isinstance(tree, Tensor):
        return tree.float()
    if isinstance(tree, Mapping):
        return {k: v if k == 'features' else _decodable(v) for k, v in tree.items()}
    return tuple(map(_decodable, tree))


class _Detector:
    """A float detector whose parts run in a way of their own."""

    def __init__(self, way: FloatWay, stock: nn.Module, images: Tensor) -> None:
        part = capture(stock)
        self.stock, self.head = stock, part.head
        self.dense = FloatPart(way.executed(part.module, images))
        # Every image has another number of regions, so they are not recorded.
        loose = replace(way, record=None)
        self.boxes = [FloatPart(loose.executed(box)) for box in loose.boxes(part)]

    def predict(self, images: Tensor, samples: list[Any]) -> list[Any]:
        """As the stock detector's."""
        with executing(self.stock, self.head, self.dense, self.boxes):
            return as_detector(self.stock).predict(images, samples)


def _dense_backend(detector: nn.Module) -> Backend:
    """What executes the dense graph of an int8 detector; raises ClipQError if it has none."""
    backend = detector.int8_backend if isinstance(detector, Int8Detector) else None
    if backend is None:
        raise ClipQError('found features that the detector computes in its own way, wanted a graph')
    return backend


@dataclass(frozen=True)
class Int8Way:
    """How mmclipq executes a detector: on the backend of that name."""

    backend: str = 'auto'

    def whole(self, setting: Setting, path: Path) -> nn.Module:
        """The detector of a ``.clipq`` file."""
        return load_int8(path, str(setting.images.device), self.backend, predicts=False)

    def dense(self, setting: Setting, path: Path) -> Run:
        """What executes the dense part once."""
        backend = _dense_backend(self.whole(setting, path))
        return lambda: backend.run(setting.images)

    def regions(self, setting: Setting, path: Path) -> Run:
        """What executes RoIAlign and box head of each stage once, on the setting's regions."""
        detector = self.whole(setting, path)
        rois = setting.regions()
        maps = _dense_backend(detector).run(setting.images)['features']
        levels_read: list[int] = vars(detector.get_submodule('roi_head'))['int8_levels']
        stages = list(zip(vars(detector)['int8_boxes'], levels_read, strict=True))
        return lambda: [box.run(*maps[:levels], rois) for box, levels in stages]
