"""Images with objects in them, their boxes, masks and semantic maps, drawn from a seed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData

_OBJECTS = 4


def _background(generator: np.random.Generator, size: int) -> np.ndarray:
    """Smooth colours with detail at every octave, as photographs have, uint8 ``(H, W, 3)``."""
    image = np.zeros((size, size, 3), np.float32)
    cells = 2
    while cells <= size:
        noise = generator.standard_normal((cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) / cells**0.7
        cells *= 2
    image = (image - image.mean()) / image.std()
    return np.clip(128 + 55 * image, 0, 255).astype(np.uint8)


def _shape(generator: np.random.Generator, size: int) -> np.ndarray:
    """A filled rectangle, ellipse or triangle somewhere, uint8 ``(H, W)`` of 0 and 1."""
    mask = np.zeros((size, size), np.uint8)
    sides = generator.integers(size // 8, size // 2, 2)
    left, top = (int(generator.integers(0, size - side)) for side in sides)
    right, bottom = left + int(sides[0]) - 1, top + int(sides[1]) - 1
    kind = generator.integers(3)
    if kind == 0:
        cv2.rectangle(mask, (left, top), (right, bottom), 1, -1)
    elif kind == 1:
        centre, axes = ((left + right) // 2, (top + bottom) // 2), (sides // 2).tolist()
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
    else:
        points = [(left, bottom), (right, bottom), ((left + right) // 2, top)]
        cv2.fillPoly(mask, [np.array(points, np.int32)], 1)
    return mask


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def synthetic_batch(
    size: int, classes: int, count: int, seed: int, masks: bool = True, semantic: bool = True
) -> dict[str, list[Any]]:
    """A batch as a data loader gives it: images and what a detector of mmdet learns from.

    Args:
        size: Height and width in pixels.
        classes: Labels are below this number.
        count: Number of images.
        seed: The same seed gives the same batch.
        masks: Whether objects have masks.
        semantic: Whether images have semantic maps.

    Returns:
        uint8 images ``(3, H, W)`` under ``'inputs'``, data samples under ``'data_samples'``.
    """
    generator = np.random.default_rng(seed)
    images, samples = [], []
    for index in range(count):
        image = _background(generator, size)
        labels = generator.integers(0, classes, _OBJECTS)
        regions = np.zeros((size, size), np.uint8)
        shapes = []
        for label in labels:
            mask = _shape(generator, size)
            colour = generator.integers(0, 256, 3)
            image[mask == 1] = image[mask == 1] // 4 + (0.75 * colour).astype(np.uint8)
            regions[mask == 1] = label
            shapes.append(mask)
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_path='synthetic.png',
                img_shape=(size, size),
                ori_shape=(size, size),
                scale_factor=(1.0, 1.0),
                flip=False,
                flip_direction=None,
                border=np.array([0, size, 0, size]),  # CenterNet's crop: all of the image
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([_box(mask) for mask in shapes], dtype=torch.float32),
            labels=torch.from_numpy(labels),
        )
        if masks:
            sample.gt_instances.masks = BitmapMasks(shapes, size, size)
        if semantic:
            sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(regions[None]))
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        images.append(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        samples.append(sample)
    return {'inputs': images, 'data_samples': samples}
