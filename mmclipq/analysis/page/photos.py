"""Photographs with the boxes of both detectors and the objects."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...errors import ClipQError
from ..changes import Boxes, ImageChange

LONGEST, SHORTEST = 480, 320
"""Pixels to which the longer side of a photograph is reduced, or up to which it is enlarged."""
QUALITY = 80
MOST_LABELS = 25
"""Boxes in one photograph with a label; more would hide it."""
RIGHT, WRONG, ALONE, MISSED = '#0072b2', '#e69f00', '#d62828', '#8a8f98'


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        title: Which detector's boxes it shows, or the objects.
        text: What it shows, for those who do not see it.
        file: A JPEG file.
        width, height: In pixels.
    """

    title: str
    text: str
    file: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """One image three times: objects, float, int8."""

    name: str
    summary: str
    photos: tuple[Photo, ...]


def rows(changes: Sequence[ImageChange], classes: Sequence[str]) -> Iterator[Row]:
    """Photographs of the images with what int8 changed in them.

    Raises:
        ClipQError: naming an image that is not there any more.
    """
    for change in changes:
        pixels = cv2.imread(change.path)
        if pixels is None:
            raise ClipQError(f'{change.path}: found no readable image, wanted the test image')
        picture = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        objects = len(change.objects.labels)
        summary = (
            f'{_count(objects, "object")}: float found {int(change.first.right.sum())}, '
            f'int8 {int(change.second.right.sum())}; '
            f'{len(change.lost)} lost, {len(change.gained)} gained'
        )
        name = Path(change.path).name
        photos = []
        # An object that only the other detector found is red in both.
        for title, boxes, alone in (
            ('objects', change.objects, (*change.lost, *change.gained)),
            ('float', change.first, change.gained),
            ('int8', change.second, change.lost),
        ):
            is_truth = boxes is change.objects
            text = f'{name}, {title}: ' + (
                f'{_count(objects, "object")}' if is_truth else
                f'{_count(len(boxes.labels), "box", "boxes")}, of which '
                f'{int((~boxes.right).sum())} wrong; {_count(len(alone), "object")} missed that '
                'the other detector found'
            )  # fmt: skip
            photos.append(_photo(picture, title, text, boxes, change.objects, alone, classes))
        yield Row(name, summary, tuple(photos))


def _count(number: int, one: str, several: str = '') -> str:
    return f'{number} {one if number == 1 else several or one + "s"}'


def _photo(
    picture: Image.Image,
    title: str,
    text: str,
    boxes: Boxes,
    objects: Boxes,
    alone: Sequence[int],
    classes: Sequence[str],
) -> Photo:
    longer = max(picture.size)
    scale = min(max(longer, SHORTEST), LONGEST) / longer
    size = round(picture.width * scale), round(picture.height * scale)
    shown = picture.resize(size, Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(shown)
    font = ImageFont.truetype(_font(), 11)
    is_truth = boxes is objects
    for index in np.argsort(boxes.right, kind='stable'):  # what found something lies above
        if is_truth and index in alone:
            continue
        corners, wrong = boxes.corners[index] * scale, MISSED if is_truth else WRONG
        colour = RIGHT if boxes.right[index] else wrong
        _rectangle(canvas, corners, colour, 2)
        if len(boxes.labels) <= MOST_LABELS:
            score = '' if is_truth else f' {boxes.scores[index]:.2f}'
            _label(canvas, corners, f'{classes[boxes.labels[index]]}{score}', colour, font)
    for index in alone:
        corners = objects.corners[index] * scale
        _rectangle(canvas, corners, ALONE, 4)
        if len(objects.labels) <= MOST_LABELS:
            _label(canvas, corners, classes[objects.labels[index]], ALONE, font)
    buffer = io.BytesIO()
    shown.save(buffer, 'jpeg', quality=QUALITY, optimize=True)
    return Photo(title, text, buffer.getvalue(), *size)


def _font() -> str:
    """A font with the letters of many languages, which matplotlib brings."""
    return str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf')


def _rectangle(canvas: ImageDraw.ImageDraw, corners: np.ndarray, colour: str, width: int) -> None:
    x1, y1, x2, y2 = (float(v) for v in corners)
    canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)


def _label(
    canvas: ImageDraw.ImageDraw,
    corners: np.ndarray,
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    left, top = float(corners[0]), max(float(corners[1]) - 13, 0)
    canvas.rectangle((left, top, left + canvas.textlength(text, font) + 4, top + 13), fill=colour)
    canvas.text((left + 2, top), text, fill='black' if colour == WRONG else 'white', font=font)
