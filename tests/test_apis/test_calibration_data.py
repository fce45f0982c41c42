"""Calibration images: the same ones every time, and one sentence for every bad source."""

import shutil

import cv2
import pytest
import torch

from mmclipq.apis import calibration_data
from mmclipq.apis.calibration_data import config_batches, folder_batches
from mmclipq.errors import ClipQError


def paths(batches):
    return [batch['data_samples'][0].img_path for batch in batches]


@pytest.fixture
def images(digits_root, tmp_path):
    """A folder with subfolders and files that are no images."""
    folder = tmp_path / 'images'
    sources = sorted((digits_root / 'JPEGImages').iterdir())[:5]
    (folder / 'sub').mkdir(parents=True)
    for index, source in enumerate(sources):
        shutil.copy(source, folder / ('sub' if index % 2 else '.') / source.name)
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.mark.parametrize('count', [1, 5, 12, 100])
def test_config_images_are_the_same_every_time(cfg, count):
    first, second = paths(config_batches(cfg, count)), paths(config_batches(cfg, count))
    assert first == second
    assert len(set(first)) == len(first) == min(count, 12)


def test_config_images_are_read_as_in_testing(cfg):
    resize = next(step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
    resize.update(scale=(64, 56), keep_ratio=False)
    (batch,) = config_batches(cfg, 1)
    (image,), (sample,) = batch['inputs'], batch['data_samples']
    assert image.dtype == torch.uint8
    assert tuple(image.shape[1:]) == sample.img_shape == (56, 64)
    assert sample.ori_shape == cv2.imread(sample.img_path).shape[:2]


@pytest.mark.parametrize(
    'wrap',
    [
        lambda plain: dict(type='RepeatDataset', times=3, dataset=plain),
        lambda plain: dict(type='MultiImageMixDataset', dataset=plain, pipeline=[]),
        lambda plain: dict(type='ConcatDataset', datasets=[plain]),
    ],
)
def test_wrapped_data_sets_are_unwrapped(cfg, wrap):
    plain = paths(config_batches(cfg, 4))
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset.to_dict())
    assert paths(config_batches(cfg, 4)) == plain


def test_test_set_serves_without_a_training_set(cfg):
    cfg.pop('train_dataloader')
    assert len(paths(config_batches(cfg, 100))) == 6
    cfg.pop('test_dataloader')
    with pytest.raises(ClipQError, match='found no train_dataloader'):
        next(config_batches(cfg, 1))


def test_missing_data_set_names_the_config(cfg):
    cfg.train_dataloader.dataset.ann_file = 'annotations/none.json'
    with pytest.raises(ClipQError, match=r'digits\.py: found no calibration data .*none\.json'):
        next(config_batches(cfg, 1))


@pytest.mark.parametrize('count', [0, -3])
def test_count_below_one(cfg, images, count):
    wanted = f'--calib-images: found {count}, wanted at least 1'
    with pytest.raises(ClipQError, match=wanted):
        next(config_batches(cfg, count))
    with pytest.raises(ClipQError, match=wanted):
        next(folder_batches(cfg, images, count))


def test_test_time_augmentation_is_skipped(cfg):
    cfg.test_dataloader.dataset.pipeline = [dict(type='TestTimeAug', transforms=[])]
    assert calibration_data.find_test_pipeline(cfg) == cfg.val_dataloader.dataset.pipeline
    cfg.pop('val_dataloader')
    with pytest.raises(ClipQError, match=r'digits\.py: found no test_dataloader'):
        next(calibration_data.config_batches(cfg, 1))


@pytest.mark.parametrize('count', [1, 3, 50])
def test_folder_images_are_the_same_every_time(cfg, images, count):
    first = paths(folder_batches(cfg, images, count))
    assert first == paths(folder_batches(cfg, str(images), count))
    assert len(set(first)) == min(count, 5)


def test_folder_and_config_read_the_same_pixels(cfg, digits_root):
    by_path = {b['data_samples'][0].img_path: b for b in config_batches(cfg, 100)}
    found = list(folder_batches(cfg, digits_root / 'JPEGImages', 100))
    assert len(found) == 18
    for batch in found:
        same = by_path.get(batch['data_samples'][0].img_path)
        assert same is None or torch.equal(batch['inputs'][0], same['inputs'][0])
    assert by_path.keys() <= set(paths(found))


def test_bad_folders_are_named(cfg, tmp_path, images):
    with pytest.raises(ClipQError, match='missing: found no folder'):
        next(folder_batches(cfg, tmp_path / 'missing', 1))
    with pytest.raises(ClipQError, match=r'notes\.txt: found no folder'):
        next(folder_batches(cfg, images / 'notes.txt', 1))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ClipQError, match='empty: found no image, wanted .*png'):
        next(folder_batches(cfg, tmp_path / 'empty', 1))


@pytest.mark.parametrize('content', [b'', b'no image', 'half'])
def test_unreadable_image_is_named(cfg, images, content):
    victim = next(path for path in images.iterdir() if path.suffix == '.jpg')
    data = victim.read_bytes()
    victim.write_bytes(data[:20] if content == 'half' else content)
    with pytest.raises(ClipQError, match=f'{victim.name}: found no readable image'):
        list(folder_batches(cfg, images, 50))
