"""The digits data set: the same bytes again, layouts that agree, and folders left alone."""

import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import _digits as digits
import cv2
import make_digits
import pytest

SIZE = (160, 128)
COUNTS = {'train': 40, 'val': 20}


def make(out: Path, seed: int = 0, force: bool = False) -> bool:
    return digits.make_digits(out, SIZE, COUNTS['train'], COUNTS['val'], seed, force)


def read_hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def read_stems(root: Path, name: str) -> list[str]:
    return (root / 'ImageSets' / 'Main' / f'{name}.txt').read_text().split()


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('digits') / 'set'
    assert make(out)
    return out


def test_same_options_give_same_bytes(made: Path, tmp_path: Path):
    assert make(tmp_path / 'again')
    assert read_hashes(tmp_path / 'again') == read_hashes(made)
    assert [path.name for path in tmp_path.iterdir()] == ['again']


def test_other_seed_gives_other_bytes(made: Path, tmp_path: Path):
    make(tmp_path / 'other', seed=1)
    ours, others = read_hashes(made), read_hashes(tmp_path / 'other')
    assert ours.keys() == others.keys()
    images = [name for name in ours if name.endswith('.jpg')]
    assert all(ours[name] != others[name] for name in images)


def test_first_images_do_not_depend_on_the_count(made: Path, tmp_path: Path):
    digits.make_digits(tmp_path / 'few', SIZE, 2, 1, 0)
    ours, few = read_hashes(made), read_hashes(tmp_path / 'few')
    images = [name for name in few if name.endswith(('.jpg', '.xml'))]
    assert len(images) == 6
    assert all(ours[name] == few[name] for name in images)


def test_splits_share_nothing(made: Path):
    train, val = read_stems(made, 'train'), read_stems(made, 'val')
    assert (len(train), len(val)) == (COUNTS['train'], COUNTS['val'])
    assert not set(train) & set(val)
    assert read_stems(made, 'test') == val
    assert read_stems(made, 'trainval') == train + val
    sources = digits.load_sources(0)
    glyphs = [{glyph.tobytes() for glyph in sources[split].glyphs} for split in digits.SPLITS]
    assert not glyphs[0] & glyphs[1]
    assert len(sources['train'].labels) + len(sources['val'].labels) == 1797
    assert not set(digits.PHOTOS['train']) & set(digits.PHOTOS['val'])


@pytest.mark.parametrize('split', ['train', 'val'])
def test_layouts_agree(made: Path, split: str):
    coco = json.loads((made / 'annotations' / f'instances_{split}.json').read_text())
    names = {category['id']: category['name'] for category in coco['categories']}
    assert tuple(names.values()) == digits.CLASSES
    assert [Path(image['file_name']).stem for image in coco['images']] == read_stems(made, split)
    seen = set()
    for image in coco['images']:
        pixels = cv2.imread(str(made / 'JPEGImages' / image['file_name']))
        assert pixels.shape == (SIZE[1], SIZE[0], 3)
        assert (image['width'], image['height']) == SIZE
        ours = []
        for annotation in coco['annotations']:
            if annotation['image_id'] == image['id']:
                x, y, w, h = annotation['bbox']
                assert 0 <= x < x + w <= SIZE[0]
                assert 0 <= y < y + h <= SIZE[1]
                assert annotation['area'] == w * h
                ours.append((names[annotation['category_id']], x + 1, y + 1, x + w, y + h))
        stem = Path(image['file_name']).stem
        root = ET.parse(made / 'Annotations' / f'{stem}.xml').getroot()
        assert root.findtext('filename') == image['file_name']
        assert tuple(int(root.findtext(f'size/{key}')) for key in ('width', 'height')) == SIZE
        corners = ('xmin', 'ymin', 'xmax', 'ymax')
        voc = [
            (item.findtext('name'), *(int(item.findtext(f'bndbox/{key}')) for key in corners))
            for item in root.iter('object')
        ]
        assert voc == ours
        assert voc
        seen.update(name for name, *_ in voc)
    assert seen == set(digits.CLASSES)
    ids = [annotation['id'] for annotation in coco['annotations']]
    assert len(set(ids)) == len(ids)


def test_boxes_hold_the_strokes():
    source = digits.load_sources(0)['train']
    rng = digits.np.random.Generator(digits.np.random.PCG64(0))
    for glyph in source.glyphs[:200]:
        mask = digits.make_mask(glyph, 24, rng)
        drawn = mask > 0.5
        assert 12 <= mask.shape[0] <= 40
        for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
            assert edge.any()


def test_same_options_keep_the_folder(made: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in made.rglob('*')}
    assert not make(made)
    assert not make(made, force=True)
    counts = ['--train', str(COUNTS['train']), '--val', str(COUNTS['val'])]
    make_digits.main(['--out', str(made), '--size', *map(str, SIZE), *counts])
    assert 'already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.rglob('*')} == before


def test_other_options_need_force(tmp_path: Path):
    out = tmp_path / 'set'
    digits.make_digits(out, SIZE, 3, 2, 0)
    before = read_hashes(out)
    with pytest.raises(digits.DigitsError, match='--force'):
        digits.make_digits(out, SIZE, 2, 2, 0)
    assert read_hashes(out) == before
    assert digits.make_digits(out, SIZE, 2, 2, 0, force=True)
    assert read_stems(out, 'train') == ['train_00000', 'train_00001']
    assert len(list((out / 'JPEGImages').iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize('force', [False, True])
def test_foreign_folder_is_left_alone(tmp_path: Path, force: bool):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(digits.DigitsError, match='not a digits data set'):
        make(tmp_path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
    with pytest.raises(digits.DigitsError, match='not a digits data set'):
        make(tmp_path / 'notes.txt', force=force)
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


def test_interrupted_run_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / 'set'
    out.mkdir()
    write_split = digits.write_split

    def interrupt(split: str, *args):
        if split == 'val':
            raise KeyboardInterrupt
        write_split(split, *args)

    monkeypatch.setattr(digits, 'write_split', interrupt)
    with pytest.raises(KeyboardInterrupt):
        digits.make_digits(out, SIZE, 2, 1, 0)
    assert not list(out.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ['set']
    monkeypatch.undo()
    assert digits.make_digits(out, SIZE, 2, 1, 0)
    assert read_stems(out, 'trainval') == ['train_00000', 'train_00001', 'val_00000']
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize(
    'option', [['--size', '32', '200'], ['--train', '0'], ['--val', '-1'], ['--seed', '-1']]
)
def test_bad_option_gives_one_sentence(tmp_path: Path, option: list[str]):
    with pytest.raises(SystemExit) as error:
        make_digits.main(['--out', str(tmp_path / 'set'), *option])
    message = str(error.value)
    assert message.startswith(f'make_digits: {option[0]}') or option[0] in message
    assert message.count('.') == 1
    assert '\n' not in message
    assert not list(tmp_path.iterdir())


def test_missing_photographs_give_one_sentence(tmp_path: Path):
    with pytest.raises(digits.DigitsError, match='install scikit-image'):
        digits.load_photos(['camera'], tmp_path)
