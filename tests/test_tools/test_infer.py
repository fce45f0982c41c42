"""``tools/infer.py`` as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmclipq.apis import build_detector, mmdet_tools, quantize, save_int8
from mmclipq.apis.mmdet_tools import check_device, find_config
from mmclipq.errors import ClipQError

TOOL = Path(__file__).parents[2] / 'tools' / 'infer.py'


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
    """A two-stage detector with random weights."""
    from mmengine.config import Config

    path = Path(__file__).parents[2] / 'configs/quickstart/faster_rcnn_mobilenetv2_digits.py'
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, 0, 0.5)
    out = tmp_path_factory.mktemp('model') / 'small.clipq'
    save_int8(out, model, quantize(model, [torch.rand(1, 3, 64, 96)]), cfg,
              {'classes': tuple('0123456789')})  # fmt: skip
    return out


def infer(*arguments):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', str(TOOL), *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip


def test_pictures_and_json_come_out(model_file, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        pixels = cv2.blur(random.integers(0, 256, (64, 96, 3), dtype=np.uint8), (5, 5))
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.jpg'), pixels)
    out = tmp_path / 'out'
    done = infer(model_file, tmp_path / 'images', '--out', out, '--score-thr', '0')
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads((out / 'preds' / f'{name}.json').read_text()) for name in 'ab']
    count = sum(len(result['scores']) for result in found)
    assert count
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f'2 images, {count} objects with a score of 0.0 or more; see {out}')
    assert sorted(p.name for p in (out / 'vis').iterdir()) == ['a.jpg', 'b.jpg']


def test_wrong_paths_are_named_in_one_sentence(model_file, tmp_path):
    done = infer(tmp_path / 'none.clipq', tmp_path)
    assert done.returncode == 1
    assert 'none.clipq: found no file, wanted a .clipq file' in done.stderr
    done = infer(model_file, tmp_path / 'none.jpg')
    assert done.returncode == 1
    assert 'none.jpg: found no file, wanted an image, a folder or a video' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('device', 'message'),
    [
        (
            'cuda:99',
            r'--device cuda:99: found \d+ GPUs .*, wanted this one; use',
        ),
        ('gpu', '--device gpu: found no such device, wanted cpu, cuda or'),
    ],
)
def test_a_device_that_is_not_there(device, message):
    with pytest.raises(ClipQError, match=message):
        check_device(device)


def test_configs_of_mmdet_are_found_by_name(tmp_path):
    found = Path(find_config('yolov3_d53_8xb8-ms-416-273e_coco.py'))
    assert found.is_file()
    assert 'mmdet' in str(found)
    own = tmp_path / 'yolov3_d53_8xb8-ms-416-273e_coco.py'
    own.write_text('model = dict()')
    assert find_config(str(own)) == str(own)
    for name, reason in (('nowhere.py', 'no file'), ('a/ssd300_coco.py', 'no file'),
                         ('voc0712.py', r'\d configs of mmdet'), ('', 'no file')):  # fmt: skip
        with pytest.raises(ClipQError, match=f'^{name}: found {reason}, wanted a detector config'):
            find_config(name)


def test_a_config_behind_a_link_counts_once(tmp_path, monkeypatch):
    (tmp_path / 'configs' / 'a').mkdir(parents=True)
    (tmp_path / 'configs' / 'a' / 'one.py').write_text('model = dict()')
    (tmp_path / 'link').symlink_to(tmp_path / 'configs')
    folders = [tmp_path / 'link', tmp_path / 'configs']
    monkeypatch.setattr(mmdet_tools, '_shipped', lambda kind: folders)
    assert find_config('one.py') == str(tmp_path / 'link' / 'a' / 'one.py')
    (tmp_path / 'configs' / 'one.py').write_text('model = dict()')
    with pytest.raises(ClipQError, match='^one.py: found 2 configs of mmdet'):
        find_config('one.py')
