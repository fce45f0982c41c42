"""The check names planted faults, and nothing on a detector whose statistics are its own."""

import contextlib
import copy
import shutil

import cv2
import numpy as np
import pytest
import torch

from mmclipq.apis import build_detector
from mmclipq.apis.calibration_data import config_batches
from mmclipq.evaluation.check import check_checkpoint
from mmclipq.evaluation.check.images import Look, judge, judge_colour
from mmclipq.evaluation.check.norms import NormRecorder, Statistics, misfit, tracked_norms
from mmclipq.evaluation.check.preprocessing import (
    Preprocessing,
    alternatives,
    of_preprocessor,
    preprocessing,
)
from mmclipq.evaluation.check.processor import instructions

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NOTHING_FOUND = 'wanted a detector that finds something'


@pytest.fixture(scope='module')
def warm_root(digits_root, tmp_path_factory):
    """The tiny data set in the light of a lamp: red and blue must differ to be told apart."""
    root = tmp_path_factory.mktemp('warm') / 'data'
    shutil.copytree(digits_root, root)
    for file in (root / 'JPEGImages').iterdir():
        cv2.imwrite(str(file), (cv2.imread(str(file)) * [0.6, 0.8, 1.0]).astype(np.uint8))
    return root


@pytest.fixture
def healthy_cfg(load_config, warm_root, monkeypatch):
    """The small detector of configs/quickstart with a normalization that has no zeros."""
    monkeypatch.setenv('DIGITS_ROOT', str(warm_root))
    preprocessor = {'mean': MEAN, 'std': STD, 'bgr_to_rgb': True}
    overrides = {f'model.data_preprocessor.{key}': value for key, value in preprocessor.items()}
    return load_config('quickstart/yolov3_mobilenetv2_digits.py', **overrides)


@pytest.fixture
def checkpoint(healthy_cfg, tmp_path):
    """Random weights whose batch norms hold the statistics of the training images, as training
    leaves them."""
    torch.manual_seed(0)
    model = build_detector(healthy_cfg.model, random=True)
    # Some filters of a trained first layer compare colours.
    first = model.backbone.conv1.conv.weight.data
    first[::2] -= first[::2].mean(1, keepdim=True)
    norms = tracked_norms(model)
    for norm in norms.values():
        norm.momentum = None  # the plain average over batches
        norm.reset_running_stats()
        norm.train()
    batches = list(config_batches(healthy_cfg, 12))
    with torch.no_grad():
        for start in range(0, 12, 6):
            part = batches[start : start + 6]
            together = {key: [batch[key][0] for batch in part] for key in part[0]}
            data = model.data_preprocessor(together, False)
            model(data['inputs'], mode='tensor')
    path = tmp_path / 'float.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def found(cfg, checkpoint, **options) -> list[str]:
    """Findings, without the one that every detector with random weights has."""
    findings = check_checkpoint(cfg, checkpoint, **{'calib_images': 12, **options}).findings
    return [finding for finding in findings if NOTHING_FOUND not in finding]


def with_preprocessor(cfg, **changes):
    cfg = copy.deepcopy(cfg)
    cfg.model.data_preprocessor.update(changes)
    return cfg


def test_healthy_detector_raises_no_alarm(healthy_cfg, checkpoint):
    assert found(healthy_cfg, checkpoint) == []


def test_swapped_mean_and_std_are_named(healthy_cfg, checkpoint):
    (finding,) = found(with_preprocessor(healthy_cfg, mean=STD, std=MEAN), checkpoint)
    assert 'the checkpoint was trained with mean and std swapped' in finding


def test_channel_order_is_named(healthy_cfg, checkpoint):
    (finding,) = found(with_preprocessor(healthy_cfg, bgr_to_rgb=False), checkpoint)
    assert 'the checkpoint was trained with RGB instead of BGR' in finding


def test_stale_batch_norm_is_named(healthy_cfg, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    name = 'backbone.layer4.1.depthwise_conv.bn'
    content['state_dict'][f'{name}.running_var'].mul_(4)
    torch.save(content, checkpoint)
    (finding,) = found(healthy_cfg, checkpoint)
    assert 'batch norm: 1 of ' in finding
    assert f'first {name} ' in finding


def test_one_grey_image_is_named(healthy_cfg, checkpoint, tmp_path):
    (tmp_path / 'grey').mkdir()
    cv2.imwrite(str(tmp_path / 'grey' / 'a.png'), np.full((96, 128, 3), 128, np.uint8))
    (finding,) = found(healthy_cfg, checkpoint, calib_dir=tmp_path / 'grey')
    assert 'found 1 image of nothing but grey (pixels near 128)' in finding


def look(**changes) -> Look:
    usual = {'digest': 'a', 'mean': 90, 'deviation': 40, 'colour': 20, 'shape': (9, 9)}
    return Look(**{**usual, **changes})


def test_images_that_cannot_stand_for_others():
    several = [look(digest=str(index)) for index in range(8)]
    assert judge(several) == []
    assert 'found one image, 8 times' in judge([look()] * 8)[0]
    assert 'found 1 of 9 that show one plain colour' in judge([*several, look(deviation=0)])[0]
    assert 'found 3 different ones among 8' in judge([*several[:2], *[look()] * 6])[0]
    colourless = [look(digest=str(index), colour=0) for index in range(8)]
    assert judge_colour(several, several) == judge_colour(colourless, colourless) == []
    assert judge_colour(colourless, several)[0].startswith('calibration images: found none with')


def test_divergence_of_known_distributions():
    real = Statistics(torch.tensor([1.0]), torch.tensor([4.0]))
    assumed = Statistics(torch.tensor([0.0]), torch.tensor([1.0]))
    fit = misfit(real, assumed, 0.0)
    assert (fit.shift, fit.ratio) == pytest.approx((1, 4))
    assert fit.median == pytest.approx((4 + 1 - 1 - np.log(4)) / 2)


def test_recorder_averages_calls_and_images():
    recorder = NormRecorder()
    for image in (torch.tensor([0.0, 2.0]), torch.tensor([4.0, 6.0])):
        recorder.next_batch()
        recorder.add('shared', image.view(1, 1, 2, 1))
        recorder.add('shared', 10 + image.view(1, 1, 2, 1))
    found = recorder.statistics('shared')
    assert found.mean.item() == 8  # of 3 and 13
    assert found.var.item() == 5  # of 0, 2, 4, 6, once for each call


def test_preprocessing_is_put_back(healthy_cfg):
    preprocessor = build_detector(healthy_cfg.model).data_preprocessor
    given = of_preprocessor(preprocessor)
    others = alternatives(given)
    assert len({other.effect for other in (given, *others)}) == len(others) + 1
    for other in others:
        with contextlib.suppress(KeyboardInterrupt), preprocessing(preprocessor, other):
            reverse, mean, std = of_preprocessor(preprocessor).effect  # of float32 buffers
            assert reverse == other.reverse
            assert (*mean, *std) == pytest.approx(other.effect[1] + other.effect[2])
            raise KeyboardInterrupt
        assert of_preprocessor(preprocessor) == given


def test_no_alternative_divides_by_zero():
    given = Preprocessing('given', False, (0.0,) * 3, (255.0,) * 3)
    assert 'mean and std swapped' not in [other.what for other in alternatives(given)]


def test_instructions_of_a_processor():
    assert instructions('flags\t\t: fpu avx2 avx512f avx512_vnni\n') == [
        'AVX512-VNNI', 'AVX512', 'AVX2'
    ]  # fmt: skip
    assert instructions('model name : none\n') == []
