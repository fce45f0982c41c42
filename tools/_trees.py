"""Writes digits again in the folders of VOC and COCO, see ``make_trees.py``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

CLASSES = 10


def _stems(digits: Path, split: str) -> list[str]:
    return (digits / 'ImageSets' / 'Main' / f'{split}.txt').read_text().split()


def write_voc(digits: Path, out: Path, classes: Sequence[str]) -> None:
    """``VOC2007`` and ``VOC2012`` in ``out``: digit ``n`` is the ``n``-th of VOC's ``classes``."""
    train = _stems(digits, 'train')
    half = len(train) // 2
    parts = {
        'VOC2007': {'trainval': train[:half], 'test': _stems(digits, 'val')},
        'VOC2012': {'trainval': train[half:]},
    }
    for year, sets in parts.items():
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (out / year / folder).mkdir(parents=True, exist_ok=True)
        for name, stems in sets.items():
            path = out / year / 'ImageSets' / 'Main' / f'{name}.txt'
            path.write_text(''.join(f'{stem}\n' for stem in stems))
            for stem in stems:
                shutil.copy(digits / 'JPEGImages' / f'{stem}.jpg', out / year / 'JPEGImages')
                text = (digits / 'Annotations' / f'{stem}.xml').read_text()
                for digit in range(CLASSES):
                    old, new = f'<name>{digit}</name>', f'<name>{classes[digit]}</name>'
                    text = text.replace(old, new)
                (out / year / 'Annotations' / f'{stem}.xml').write_text(text)


def write_coco(digits: Path, out: Path, classes: Sequence[str]) -> None:
    """``train2017``, ``val2017`` and ``annotations`` in ``out``, with all of COCO's ``classes``."""
    (out / 'annotations').mkdir(parents=True, exist_ok=True)
    for split in ('train', 'val'):
        content = json.loads((digits / 'annotations' / f'instances_{split}.json').read_text())
        content['categories'] = [{'id': n + 1, 'name': name} for n, name in enumerate(classes)]
        path = out / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content))
        folder = out / f'{split}2017'
        folder.mkdir(exist_ok=True)
        for image in content['images']:
            shutil.copy(digits / 'JPEGImages' / image['file_name'], folder)
