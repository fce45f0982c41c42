"""Makes the data set of ``tools/make_digits.py``, see there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import skimage
from sklearn.datasets import load_digits
from tqdm import tqdm

CLASSES = tuple('0123456789')
SPLITS = ('train', 'val')
PHOTOS = {
    'train': (
        'astronaut', 'brick', 'camera', 'coffee', 'grass', 'ihc', 'motorcycle_left', 'rocket'
    ),
    'val': ('chelsea', 'gravel', 'hubble_deep_field', 'retina'),
}  # fmt: skip
MANIFEST = 'digits.json'
MIN_SIDE = 64
VERSION = 1


class DigitsError(Exception):
    """A request that cannot be met; its text is one sentence for the user."""


class Source(NamedTuple):
    """What the images of one split are made of."""

    photos: list[np.ndarray]
    glyphs: np.ndarray
    labels: np.ndarray


class Box(NamedTuple):
    """An object: its class and the half-open pixel rectangle that it fills."""

    label: int
    x: int
    y: int
    w: int
    h: int


def load_photos(names: Sequence[str], folder: Path) -> list[np.ndarray]:
    """Read those of the photographs that the installed scikit-image has, as BGR."""
    paths = [path for name in names for path in sorted(folder.glob(f'{name}.[jp][pn]g'))]
    if not paths:
        raise DigitsError(
            f'None of the photographs {", ".join(names)} is in {folder}: '
            'install scikit-image from its wheel.'
        )
    photos = [cv2.imread(str(path)) for path in paths]
    return [photo for photo in photos if photo is not None]


def load_sources(seed: int) -> dict[str, Source]:
    """Split digits and photographs so that no pixel of a training image is in a validation one."""
    folder = Path(skimage.__file__).parent / 'data'
    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(digits.target))
    cut = len(order) * 4 // 5
    parts = {'train': order[:cut], 'val': order[cut:]}
    return {
        split: Source(
            load_photos(PHOTOS[split], folder),
            (digits.images[parts[split]] / 16).astype(np.float32),
            digits.target[parts[split]],
        )
        for split in SPLITS
    }


def make_background(photo: np.ndarray, width: int, height: int, rng: np.random.Generator):
    """A random crop of the photograph, at a random zoom, brightness and side."""
    fit = min(photo.shape[1] / width, photo.shape[0] / height)
    zoom = rng.uniform(0.5, 1.0) * fit
    w, h = max(int(width * zoom), 1), max(int(height * zoom), 1)
    x = int(rng.integers(photo.shape[1] - w + 1))
    y = int(rng.integers(photo.shape[0] - h + 1))
    crop = photo[y : y + h, x : x + w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    mode = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    crop = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=mode)
    return crop.astype(np.float32) * np.float32(rng.uniform(0.6, 1.0))


def make_mask(glyph: np.ndarray, height: int, rng: np.random.Generator) -> np.ndarray:
    """The opacity of the digit, enlarged, a little turned and cut to its strokes."""
    scale = height / 8
    stretch = scale * rng.uniform(0.8, 1.2)
    side = int(height * 1.8)
    matrix = cv2.getRotationMatrix2D((0.0, 0.0), rng.uniform(-12, 12), 1.0)
    matrix = matrix[:, :2] @ np.diag([stretch, scale])
    # The middle of the 8x8 digit goes to the middle of the canvas.
    shift = (side - 1) / 2 - matrix @ np.array([3.5, 3.5])
    canvas = cv2.warpAffine(
        glyph, np.hstack([matrix, shift[:, None]]), (side, side), flags=cv2.INTER_CUBIC
    )
    mask = np.clip((canvas - 0.4) / 0.3, 0, 1)
    rows, columns = (np.flatnonzero((mask > 0.5).any(axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pick_colour(away_from: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour whose brightness is well off that of the given one."""
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if abs(colour.mean() - away_from.mean()) > 70:
            return colour


def covers(box: Box, others: Sequence[Box], share: float) -> bool:
    """Whether the box and one of the others share more than this part of the smaller one."""
    for other in others:
        w = min(box.x + box.w, other.x + other.w) - max(box.x, other.x)
        h = min(box.y + box.h, other.y + other.h) - max(box.y, other.y)
        if w > 0 and h > 0 and w * h > share * min(box.w * box.h, other.w * other.h):
            return True
    return False


def paste(image: np.ndarray, mask: np.ndarray, box: Box, rng: np.random.Generator) -> None:
    """Draw the digit into the image, in every fourth case on a plate of its own."""
    patch = image[box.y : box.y + box.h, box.x : box.x + box.w]
    ground = patch.mean((0, 1))
    if rng.random() < 0.25:
        ground = rng.uniform(0, 255, 3).astype(np.float32)
        pad = max(box.h // 10, 1)
        plate = image[
            max(box.y - pad, 0) : box.y + box.h + pad, max(box.x - pad, 0) : box.x + box.w + pad
        ]
        plate += (ground - plate) * np.float32(0.85)
    opacity = mask[..., None] * np.float32(rng.uniform(0.8, 1.0))
    patch += (pick_colour(ground, rng) - patch) * opacity


def make_image(
    source: Source, width: int, height: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Box]]:
    """One image with four to nine digits, and their boxes."""
    photo = source.photos[rng.integers(len(source.photos))]
    image = make_background(photo, width, height, rng)
    boxes: list[Box] = []
    short = min(width, height)
    for _ in range(rng.integers(4, 10)):
        index = rng.integers(len(source.labels))
        tall = int(np.exp(rng.uniform(np.log(0.17), np.log(0.42))) * short)
        mask = make_mask(source.glyphs[index], tall, rng)
        h, w = mask.shape
        for _ in range(20):
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = Box(int(source.labels[index]), x, y, w, h)
            if not covers(box, boxes, 0.2):
                paste(image, mask, box, rng)
                boxes.append(box)
                break
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), boxes


def voc_xml(name: str, width: int, height: int, boxes: Sequence[Box]) -> str:
    """The VOC annotation of an image; VOC counts pixels from one and includes the last."""
    objects = ''.join(
        f'  <object>\n    <name>{CLASSES[box.label]}</name>\n    <difficult>0</difficult>\n'
        f'    <bndbox><xmin>{box.x + 1}</xmin><ymin>{box.y + 1}</ymin>'
        f'<xmax>{box.x + box.w}</xmax><ymax>{box.y + box.h}</ymax></bndbox>\n  </object>\n'
        for box in boxes
    )
    return (
        f'<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{name}</filename>\n'
        f'  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n'
        f'{objects}</annotation>\n'
    )


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent) + '\n', encoding='utf-8')


def write_split(split: str, source: Source, root: Path, options: dict[str, Any]) -> None:
    """Write the images and the annotations of a split."""
    width, height = options['size']
    coco: dict[str, list[dict[str, Any]]] = {'images': [], 'annotations': [], 'categories': []}
    stems = [f'{split}_{index:05d}' for index in range(options[split])]
    for index, stem in enumerate(tqdm(stems, desc=split, unit='image', disable=None)):
        # A generator for each image: the first images do not depend on how many follow.
        rng = np.random.Generator(np.random.PCG64([options['seed'], SPLITS.index(split), index]))
        pixels, boxes = make_image(source, width, height, rng)
        name = f'{stem}.jpg'
        data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (root / 'JPEGImages' / name).write_bytes(data.tobytes())
        xml = voc_xml(name, width, height, boxes)
        (root / 'Annotations' / f'{stem}.xml').write_text(xml, encoding='utf-8')
        coco['images'].append({'id': index, 'file_name': name, 'width': width, 'height': height})
        for label, *rectangle in boxes:
            number = len(coco['annotations']) + 1
            item: dict[str, Any] = {'id': number, 'image_id': index, 'iscrowd': 0}
            item.update(category_id=label + 1, bbox=rectangle, area=rectangle[2] * rectangle[3])
            coco['annotations'].append(item)
    coco['categories'] = [{'id': label + 1, 'name': name} for label, name in enumerate(CLASSES)]
    write_json(root / 'annotations' / f'instances_{split}.json', coco)
    for name in (split, 'trainval') if split == 'train' else (split, 'test', 'trainval'):
        with open(root / 'ImageSets' / 'Main' / f'{name}.txt', 'a', encoding='utf-8') as file:
            file.writelines(f'{stem}\n' for stem in stems)


def check_folder(out: Path, options: dict[str, Any], force: bool) -> bool:
    """Whether there is something to make; an error where the folder must not be touched."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    found = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((out / MANIFEST).read_text(encoding='utf-8'))
    if not isinstance(found, dict) or found.keys() != options.keys():
        raise DigitsError(f'{out} is not a digits data set: choose a new or an empty folder.')
    if found != options and not force:
        raise DigitsError(
            f'{out} holds a digits data set made with other options: '
            'choose another folder, or add --force to replace it.'
        )
    return found != options


def make_digits(
    out: Path, size: Sequence[int], train: int, val: int, seed: int, force: bool = False
) -> bool:
    """Make the data set in the folder ``out``; False if this very one is there already."""
    if min(size) < MIN_SIDE:
        raise DigitsError(f'--size must be at least {MIN_SIDE} by {MIN_SIDE} pixels.')
    if min(train, val) < 1:
        raise DigitsError('--train and --val must be at least 1.')
    if seed < 0:
        raise DigitsError('--seed must not be negative.')
    options = {'version': VERSION, 'size': list(size), 'train': train, 'val': val, 'seed': seed}
    if not check_folder(out, options, force):
        return False
    sources = load_sources(seed)
    # All is made beside the folder and moved there at the end: what a sudden end leaves is in a
    # folder of its own, which the next run clears.
    out = out.resolve()
    work = out.with_name(f'{out.name}.partial')
    shutil.rmtree(work, ignore_errors=True)
    new = work / 'new'
    try:
        for folder in ('JPEGImages', 'Annotations', 'annotations', 'ImageSets/Main'):
            (new / folder).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            write_split(split, sources[split], new, options)
        write_json(new / MANIFEST, options, indent=2)
    except BaseException:
        shutil.rmtree(work)
        raise
    if out.exists():
        out.rename(work / 'old')
    new.rename(out)
    shutil.rmtree(work)
    return True
