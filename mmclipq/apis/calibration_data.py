"""Batches of calibration images, from a config's own data set or from a folder."""

from __future__ import annotations

import copy
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope
from tqdm import tqdm

from ..errors import ClipQError
from .mmdet_tools import check_range
from .unreadable import unreadable_image

IMAGE_SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'})
_SEED = 0


def find_test_pipeline(cfg: Config) -> list[dict[str, Any]] | None:
    """The transforms of the config's test data loader, or None if it has no plain ones."""
    for loader in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(loader) or {}).get('dataset', {})
        while 'pipeline' not in dataset and 'dataset' in dataset:
            dataset = dataset['dataset']
        steps = dataset.get('pipeline')
        # With test-time augmentation the test pipeline gives several images for one.
        if steps and all('TestTimeAug' not in str(step['type']) for step in steps):
            return copy.deepcopy(steps)
    return None


def annotations_read(step: Mapping[str, Any]) -> str | None:
    """The kind of annotations that a transform loads, None if it loads none.

    That of LoadAnnotations is ``''``, of LoadPanopticAnnotations ``'Panoptic'``.
    """
    found = re.search(r'Load(\w*)Annotations', str(step['type']))
    return None if found is None else found[1]


def array_or_file_pipeline(steps: Sequence[dict[str, Any]]) -> Compose | None:
    """A test pipeline's ``steps`` for the path or the array of an image without annotations.

    Returns:
        What makes a data sample of it; None if no step reads a file.
    """
    kept = [copy.deepcopy(step) for step in steps if annotations_read(step) is None]
    loader = next((s for s in kept if 'LoadImageFromFile' in str(s['type'])), None)
    if loader is None:
        return None
    loader['type'] = 'mmdet.InferencerLoader'
    for step in kept:
        if 'meta_keys' in step:
            absent = ('img_id', 'instances')
            step['meta_keys'] = tuple(key for key in step['meta_keys'] if key not in absent)
    return Compose(kept)


def with_instances(cfg: Config) -> Config:
    """The config whose test pipeline packs an image's objects, in the image's own pixels."""
    cfg = copy.deepcopy(cfg)
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset', {})
        while 'pipeline' not in dataset and 'dataset' in dataset:
            dataset = dataset['dataset']
        for step in dataset.get('pipeline', ()):
            if 'PackDetInputs' in str(step['type']):
                usual = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
                step['meta_keys'] = (*step.get('meta_keys', usual), 'instances')
    return cfg


def _needed_pipeline(cfg: Config) -> list[dict[str, Any]]:
    pipeline = find_test_pipeline(cfg)
    if pipeline is None:
        raise ClipQError(
            f'{cfg.filename}: found no test_dataloader with a plain pipeline, wanted one to read '
            'calibration images with'
        )
    return pipeline


def _plain_datasets(dataset: Any) -> Iterator[dict[str, Any]]:
    """The data sets inside wrappers such as RepeatDataset, ConcatDataset or MultiImageMix."""
    if 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from _plain_datasets(part)
    elif 'dataset' in dataset:
        yield from _plain_datasets(dataset['dataset'])
    else:
        yield dataset


def _bar(items: Sequence[Any]) -> Iterable[Any]:
    """``items`` behind a progress bar, that of the first process alone."""
    return tqdm(items, desc='calibration', unit='image', disable=not is_main_process())


def _chosen(total: int, count: int, held: int = 0, seed: int = _SEED) -> list[int]:
    """``count`` of ``total`` indices, the same ones every time.

    With ``held``, so many of those that are left by such a choice.
    """
    first = sorted(random.Random(seed).sample(range(total), min(count, total)))
    if not held:
        return first
    rest = sorted(set(range(total)) - set(first))
    return sorted(random.Random(seed).sample(rest, min(held, len(rest))))


def config_batches(cfg: Config, count: int, held: int = 0, seed: int = _SEED) -> Iterator[Any]:
    """Batches of one image each from the training set, read as in testing.

    The data set itself is read with the first batch.

    Args:
        cfg: A full detector config. Without a training set its test set serves.
        count: Number of images that calibrate, drawn with a fixed seed.
        held: If above zero, batches of so many other images instead, drawn from those that do not
            calibrate.
        seed: Of the draw.

    Raises:
        ClipQError: if ``count`` is below one, or the data set cannot be read or is empty.
    """
    check_range('--calib-images', count, 1)
    loader = cfg.get('train_dataloader') or cfg.get('test_dataloader')
    if not loader:
        raise ClipQError(f'{cfg.filename}: found no train_dataloader, wanted one to calibrate on')
    chosen = partial(_chosen, count=count, held=held, seed=seed)
    return _config_batches(cfg, chosen, loader, _needed_pipeline(cfg))


def _config_batches(
    cfg: Config,
    choose: Callable[[int], list[int]],
    loader: Mapping[str, Any],
    pipeline: list[dict[str, Any]],
) -> Iterator[Any]:
    init_default_scope('mmdet')
    datasets = []
    for plain in _plain_datasets(loader['dataset']):
        plain = {**copy.deepcopy(plain), 'pipeline': pipeline}
        try:
            datasets.append(DATASETS.build(plain))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ClipQError(
                f'{cfg.filename}: found no calibration data ({error}), wanted the data set of '
                'train_dataloader; check data_root or pass --calib-dir'
            ) from error
    images = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    if not images:
        raise ClipQError(f'{cfg.filename}: found an empty training set, wanted images')
    for position in _bar(choose(len(images))):
        dataset, index = images[position]
        yield pseudo_collate([read_image(dataset, index)])


def read_image(dataset: Any, index: int) -> Any:
    """Image ``index`` of a data set.

    Raises:
        ClipQError: naming the file that cannot be read.
    """
    try:
        return dataset[index]
    except Exception as error:  # OpenCV's and the file system's own ones
        path = dataset.get_data_info(index).get('img_path', f'image {index}')
        raise unreadable_image(path, error) from error


def folder_batches(
    cfg: Config, folder: str | os.PathLike, count: int, held: int = 0, seed: int = _SEED
) -> Iterator[Any]:
    """Batches of one image each from a folder, read with the config's test pipeline.

    ``count``, ``held`` and ``seed`` are those of :func:`config_batches`.

    Raises:
        ClipQError: if there is no such folder, it has no image, or a file is no image.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ClipQError(f'{folder}: found no folder, wanted one with images')
    files = sorted(p for p in path.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ClipQError(f'{folder}: found no image, wanted {", ".join(sorted(IMAGE_SUFFIXES))}')
    check_range('--calib-images', count, 1)
    chosen = [files[index] for index in _chosen(len(files), count, held, seed)]
    return _file_batches(chosen, _needed_pipeline(cfg))


def _file_batches(files: Sequence[Path], pipeline: list[dict[str, Any]]) -> Iterator[Any]:
    init_default_scope('mmdet')
    # Annotations do not matter here, and a bare image has none.
    steps = [step for step in pipeline if annotations_read(step) is None]
    for step in steps:
        if 'meta_keys' in step:
            step['meta_keys'] = tuple(key for key in step['meta_keys'] if key != 'instances')
    read = Compose(steps)
    for index, file in enumerate(_bar(files)):
        # The header alone would not show a truncated file.
        if cv2.imread(str(file)) is None:
            raise ClipQError(f'{file}: found no readable image, wanted one OpenCV can decode')
        yield pseudo_collate([read({'img_path': str(file), 'img_id': index})])
