"""Other ways to prepare pixels than the config's, one of which a checkpoint may come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CAFFE = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Preprocessing:
    """What happens to the pixels of an image that was read as BGR.

    Attributes:
        what: In words, for whoever reads a finding.
        reverse: Whether the channels are put in reverse order, ``bgr_to_rgb``.
        mean, std: Of each channel after that; None if pixels stay as they are.
    """

    what: str
    reverse: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def settings(self) -> str:
        """As a config says it."""
        if self.mean is None or self.std is None:
            return f'mean=None, std=None, bgr_to_rgb={self.reverse}'
        mean, std = ([round(value, 3) for value in part] for part in (self.mean, self.std))
        return f'mean={mean}, std={std}, bgr_to_rgb={self.reverse}'

    def is_possible(self) -> bool:
        """Whether it divides by nothing but positive numbers."""
        return self.std is None or all(value > 0 for value in self.std)

    @property
    def effect(self) -> tuple:
        """The same for two that do the same."""
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        return self.reverse, *(p * 3 if len(p) == 1 else p for p in (mean, std))


def of_preprocessor(preprocessor: nn.Module) -> Preprocessing:
    """What a detector's data preprocessor does."""
    mean = std = None
    if getattr(preprocessor, '_enable_normalize', False):
        mean = tuple(preprocessor.get_buffer('mean').flatten().tolist())
        std = tuple(preprocessor.get_buffer('std').flatten().tolist())
    reverse = bool(getattr(preprocessor, '_channel_conversion', False))
    return Preprocessing("the config's", reverse, mean, std)


def alternatives(given: Preprocessing) -> list[Preprocessing]:
    """What else a checkpoint may have been trained with, each one different in effect."""
    mean, std = given.mean or (0.0,), given.std or (1.0,)
    order = 'BGR' if given.reverse else 'RGB'
    found = [
        replace(given, what=f'{order} instead of {order[::-1]}', reverse=not given.reverse),
        Preprocessing(
            f'{order} instead of {order[::-1]}, mean and std reversed, too',
            not given.reverse,
            mean[::-1],
            std[::-1],
        ),
        Preprocessing('mean and std swapped', given.reverse, std, mean),
        Preprocessing('no normalization', given.reverse, None, None),
        Preprocessing('pixels divided by 255', given.reverse, (0.0,) * 3, (255.0,) * 3),
        Preprocessing(
            'mean and std 255 times as large', given.reverse,
            tuple(255 * m for m in mean), tuple(255 * s for s in std),
        ),
        Preprocessing("torchvision's mean and std in RGB", True, *IMAGENET),
        Preprocessing(
            "torchvision's mean and std in BGR", False, IMAGENET[0][::-1], IMAGENET[1][::-1]
        ),
        Preprocessing("Caffe's mean in BGR", False, *CAFFE),
    ]  # fmt: skip
    seen, distinct = {given.effect}, []
    for other in found:
        if other.effect not in seen and other.is_possible():
            seen.add(other.effect)
            distinct.append(other)
    return distinct


@contextmanager
def preprocessing(preprocessor: nn.Module, wanted: Preprocessing) -> Iterator[None]:
    """Inside, a data preprocessor does what is ``wanted``; afterwards what it did before."""
    names = ('_enable_normalize', '_channel_conversion')
    state = {name: getattr(preprocessor, name) for name in names}
    buffers = {name: preprocessor._buffers.get(name) for name in ('mean', 'std')}
    device = cast(torch.device, preprocessor.device)
    vars(preprocessor).update(
        _channel_conversion=wanted.reverse, _enable_normalize=wanted.mean is not None
    )
    for name in buffers if wanted.mean is not None else ():
        values = torch.tensor(getattr(wanted, name), device=device).view(-1, 1, 1)
        preprocessor._buffers[name] = values
    try:
        yield
    finally:
        for name, value in state.items():
            setattr(preprocessor, name, value)
        for name, value in buffers.items():
            if value is None:
                preprocessor._buffers.pop(name, None)
            else:
                preprocessor._buffers[name] = value
