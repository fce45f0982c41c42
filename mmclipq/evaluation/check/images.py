"""Whether a set of images is one to calibrate with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

FLAT = 2.0
"""Standard deviation of pixels, of 255, up to which an image shows nothing."""
COLOURLESS = 1.0
"""Mean difference between channels, of 255, up to which an image has no colour."""


@dataclass(frozen=True)
class Look:
    """What matters of one image's pixels, from 0 to 255.

    Attributes:
        digest: The same for equal images.
        mean: Of all pixels.
        deviation: Standard deviation of the pixels within the channels.
        colour: Mean absolute difference between the channels.
        shape: Height and width as the detector reads it.
    """

    digest: str
    mean: float
    deviation: float
    colour: float
    shape: tuple[int, int]

    @classmethod
    def at(cls, pixels: Tensor) -> Look:
        """Of an image ``(C, H, W)``, uint8 or float."""
        values = pixels.float()
        height, width = pixels.shape[1:]
        colour = (values - values.mean(0)).abs().mean() if len(values) > 1 else values.new_zeros(())
        return cls(
            hashlib.sha256(pixels.contiguous().numpy(force=True).tobytes()).hexdigest(),
            float(values.mean()),
            float(values.flatten(1).std(1).mean()),
            float(colour),
            (height, width),
        )


def judge(looks: Sequence[Look]) -> list[str]:
    """Sentences about calibration images that cannot stand for others; empty if they can."""
    flat = [look for look in looks if look.deviation <= FLAT]
    different = len({look.digest for look in looks})
    findings = []
    if len(flat) == len(looks):
        colour = 'grey' if all(look.colour <= COLOURLESS for look in looks) else 'plain'
        found = f'{len(looks)} image' + ('s' if len(looks) > 1 else '')
        findings.append(
            f'calibration images: found {found} of nothing but {colour} (pixels near '
            f'{flat[0].mean:.0f}), wanted images like those that the detector will see'
        )
    elif different == 1:
        findings.append(
            f'calibration images: found one image{_times(len(looks))}, wanted some dozens of '
            'different ones; ranges of one image hold for no other'
        )
    elif flat:
        findings.append(
            f'calibration images: found {len(flat)} of {len(looks)} that show one plain colour, '
            'wanted images like those that the detector will see'
        )
    elif different < len(looks) / 2:
        findings.append(
            f'calibration images: found {different} different ones among {len(looks)}, wanted '
            'different ones'
        )
    return findings


def _times(count: int) -> str:
    return f', {count} times' if count > 1 else ''


def judge_colour(looks: Sequence[Look], tested: Sequence[Look]) -> list[str]:
    """A sentence if one set of images has colour and the other one does not."""
    without = [all(look.colour <= COLOURLESS for look in part) for part in (looks, tested)]
    if without[0] == without[1] or not tested:
        return []
    names = ('calibration', 'test') if without[0] else ('test', 'calibration')
    return [
        f'{names[0]} images: found none with colour, and {names[1]} images with, wanted both alike'
    ]
