"""From 8-bit pixels to the codes of a graph's input, without a float image in between."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.utils import samplelist_boxtype2tensor
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement
from torch import Tensor

from .. import fixed_point as fp
from ..graph.types import TensorType
from ..ops.cpu.pixels import pixels_to_codes

_CHANNELS = 3


class PixelCodes:
    """The code of every value of a pixel, made by the stock preprocessor and the stock rounding.

    Args:
        preprocessor: Turns channels and normalizes.
        kind: Type of the codes.

    Attributes:
        tables: int8 or uint8 ``(3, 256)``.
        source: int64 ``(3,)``: the channel of an image that each channel of the codes shows.
        padding: Code of the preprocessor's ``pad_value``.
    """

    def __init__(self, preprocessor: DetDataPreprocessor, kind: TensorType) -> None:
        self._divisor = preprocessor.pad_size_divisor
        ramps = torch.arange(256, dtype=torch.uint8).expand(_CHANNELS, 1, 256)
        given = {'inputs': [ramps], 'data_samples': None}
        bare = copy.copy(preprocessor)
        bare.pad_size_divisor = 1  # a file may ask for any
        values = ImgDataPreprocessor.forward(bare, given)['inputs'][0, :, 0]
        self.tables = self._encoded(values, kind).contiguous()
        self.source = torch.tensor([2, 1, 0] if preprocessor._channel_conversion else [0, 1, 2])
        padding = self._encoded(torch.tensor([float(preprocessor.pad_value)]), kind)
        self.padding = int(padding)

    @staticmethod
    def _encoded(values: Tensor, kind: TensorType) -> Tensor:
        return fp.encode(values.cpu(), kind.range_exponent, kind.signed, offset=kind.offset)

    def padded(self, size: int) -> int:
        """Rows or columns of an image with its padding to the preprocessor's divisor."""
        return -(-size // self._divisor) * self._divisor

    def fits(self, images: Any) -> TypeGuard[Sequence[Tensor]]:
        """Whether ``images`` is a list of 8-bit images with the channels of the tables."""
        if not isinstance(images, (list, tuple)) or not images:
            return False
        return all(
            isinstance(x, Tensor)
            and x.dtype == torch.uint8
            and x.dim() == 3
            and x.device.type == 'cpu'
            and len(x) == len(self.tables)
            and x.numel() > 0
            for x in images
        )

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Codes of images ``(C, H, W)`` of any sizes: int8 or uint8 ``(N, C, H', W')``, channels
        last in memory, padded to the largest height and width and the preprocessor's divisor."""
        height, width = (self.padded(max(x.shape[axis] for x in images)) for axis in (1, 2))
        codes = torch.empty(
            len(images), len(self.tables), height, width,
            dtype=self.tables.dtype, memory_format=torch.channels_last,
        )  # fmt: skip
        for image, out in zip(images, codes, strict=True):
            pixels_to_codes(image, self.tables, self.source, self.padding, out)
        return codes


_FIXED = int, float, str, bool, type(None)


def copied(element: Any) -> Any:
    """What ``element.to('cpu')`` gives of a data sample, without its costs: new objects around the
    same tensors, and copies of metadata that can change."""
    kind: Any = type(element)
    if not isinstance(element, BaseDataElement) or not (
        kind.to is BaseDataElement.to and kind.new is BaseDataElement.new
    ):
        return element.to('cpu') if hasattr(element, 'to') else element
    new = kind.__new__(kind)
    for name, value in vars(element).items():
        if name in element._data_fields:
            value = copied(value)
        elif isinstance(value, set):  # names of fields
            value = set(value)
        elif not isinstance(value, _FIXED) and not (
            type(value) is tuple and all(isinstance(x, _FIXED) for x in value)
        ):
            value = copy.deepcopy(value)
        vars(new)[name] = value
    return new


class FastPreprocessor:
    """Mixed into the data preprocessor's class: 8-bit images become codes at once.

    Codes are those of the stock preprocessor's images. What else it is given, and training, go the
    stock way.
    """

    pixel_codes: PixelCodes

    def forward(self, data: Any, training: bool = False) -> Any:
        """As the stock preprocessor's, with codes as ``inputs``."""
        images = data.get('inputs') if isinstance(data, Mapping) else None
        stock: Any = super()
        if training or not self.pixel_codes.fits(images):
            return stock.forward(data, training)
        samples = data.get('data_samples')
        if self.device.type == 'cpu' and isinstance(samples, list):  # type: ignore[attr-defined]
            samples = [copied(sample) for sample in samples]
        else:
            samples = stock.cast_data(samples)
        codes = self.pixel_codes(images)
        if samples is not None:
            size = tuple(codes.shape[2:])
            for sample, image in zip(samples, images, strict=True):
                shape = tuple(map(self.pixel_codes.padded, image.shape[1:]))
                sample.set_field(size, 'batch_input_shape', field_type='metainfo')
                sample.set_field(shape, 'pad_shape', field_type='metainfo')
            if self.boxtype2tensor:  # type: ignore[attr-defined]
                samplelist_boxtype2tensor(samples)
        return {'inputs': codes, 'data_samples': samples}


def takes_pixels(preprocessor: Any) -> bool:
    """Whether a detector's preprocessor does what :class:`PixelCodes` does, and nothing else."""
    if not isinstance(preprocessor, DetDataPreprocessor):
        return False
    names = 'forward', 'cast_data', '_get_pad_shape'
    if any(getattr(type(preprocessor), n) is not getattr(DetDataPreprocessor, n) for n in names):
        return False
    if preprocessor.pad_size_divisor < 1:
        return False
    return not preprocessor._enable_normalize or len(preprocessor.mean) == _CHANNELS
