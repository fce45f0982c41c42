"""The tools that choose and compare calibrations, on tiny data."""

import subprocess
import sys

import calibrations
import pytest
import quantize
import torch

from mmclipq.apis import build_detector
from mmclipq.errors import ClipQError


@pytest.fixture
def checkpoint(cfg, tmp_path):
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    return str(tmp_path / 'float.pth')


CONFIG = 'configs/quickstart/yolov3_mobilenetv2_digits.py'


def test_each_way_is_compared_with_float(cfg, checkpoint, tmp_path):
    cfg.dump(tmp_path / 'digits.py')
    options = ['--draws', '2', '--calib-images', '1', '--ways', 'weights', 'inputs']
    command = [sys.executable, calibrations.__file__, tmp_path / 'digits.py', checkpoint, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    rows = [line.split('|')[1].strip() for line in lines if line.startswith('| ')]
    assert rows == ['calibration', 'float', 'weights', 'inputs']
    assert lines[-1].count(', ') == 1  # two draws


@pytest.mark.parametrize('way', ['entropy', 'max+search', '+bias'])
def test_an_unknown_way_is_named(way):
    with pytest.raises(ClipQError, match=r'--ways: found .*, wanted some of paper, search'):
        calibrations.main([CONFIG, __file__, '--ways', 'max', way])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--percentile', '0'], 'percentile: found 0.0, wanted one above 0'),
        (['--max-drop', '-1'], '--max-drop: found -1.0, wanted at least 0'),
        (['--held-images', '1'], '--held-images: found 1, wanted at least 2'),
    ],
)
def test_options_are_checked_first(options, message, tmp_path):
    with pytest.raises(ClipQError, match=message):
        quantize.main([CONFIG, __file__, '--out', str(tmp_path / 'a.clipq'), *options])


def test_options_reach_the_calibration(checkpoint, tmp_path, monkeypatch):
    from mmclipq.apis import quantize_checkpoint

    seen = {}

    def recorded(model, batches, clipq, **options):
        seen.update(options)
        raise ClipQError('seen')

    monkeypatch.setattr(quantize_checkpoint, 'quantize', recorded)
    options = ['--method', 'percentile', '--percentile', '99.5', '--bias-correction', '--no-check']
    with pytest.raises(ClipQError, match='seen'):
        quantize.main([CONFIG, checkpoint, '--out', str(tmp_path / 'a.clipq'), *options])
    wanted = {'method': 'percentile', 'percentile': 99.5, 'bias_correction': True, 'offsets': True}
    assert seen == wanted
