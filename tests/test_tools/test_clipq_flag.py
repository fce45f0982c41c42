"""``--clipq`` in the tools, on a config that owns hooks: train, resume, convert and test."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
STOCK = ROOT / 'configs' / 'quickstart' / 'finetune_yolov3_digits.py'
OPTIONS = ['--clipq', 'observe_iters=1', 'int8.calib_images=1', 'lq.loss_weight=0.25']
TYPES = ['EMAHook', 'mmclipq.ClipQHook', 'mmclipq.Int8ExportHook']


@pytest.fixture(scope='module')
def project(without_workers, tmp_path_factory) -> Path:
    """Folder with a detector's config that owns hooks and knows nothing of mmclipq."""
    folder = tmp_path_factory.mktemp('project')
    (folder / 'my.py').write_text(
        f'_base_ = {str(STOCK)!r}\n'
        "custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA')]\n"
        'train_cfg = dict(max_epochs=1)\n'
        'default_hooks = dict(checkpoint=dict(interval=1))\n'
        f'{without_workers}'
        'train_dataloader.update(batch_size=4)\n'
    )
    return folder


@pytest.fixture(scope='module')
def trained(project, digits_root) -> Path:
    """Work folder after one epoch, and a second one that resumed it."""

    def train(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py'), 'my.py', *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, 'DIGITS_ROOT': str(digits_root), 'OMP_NUM_THREADS': '1'},
            cwd=project,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    work = project / 'work_dirs' / 'my'
    train(*OPTIONS)
    assert (work / 'epoch_1_int8.clipq').is_file()
    log = train('--resume', '--cfg-options', 'train_cfg.max_epochs=2', *OPTIONS)
    assert 'resumed epoch: 1' in log
    return work


@pytest.fixture
def run(project, digits_root, monkeypatch):
    """Runs a tool in the project's folder, in this process, because the imports take seconds."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits_root))
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(project)

    def call(tool: str, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')

    return call


def test_training_clips_and_exports_under_the_name_of_the_config(trained):
    assert (trained / 'epoch_2_int8.clipq').is_file()
    checkpoint = torch.load(trained / 'epoch_2.pth', weights_only=True)
    assert len(checkpoint['clipq']) == 75
    assert 'ema_state_dict' in checkpoint


def test_config_in_the_work_folder_needs_no_flag(trained):
    cfg = Config.fromfile(trained / 'my.py')
    assert [hook['type'] for hook in cfg.custom_hooks] == TYPES
    assert cfg.clipq.lq.loss_weight == 0.25
    assert cfg.clipq.observe_iters == 1
    assert cfg.work_dir == './work_dirs/my'


def test_quantize_with_the_flag_gives_what_the_hook_exported(trained, run, tmp_path):
    out = tmp_path / 'made.clipq'
    run('quantize.py', 'my.py', trained / 'epoch_2.pth', '--out', out, *OPTIONS)
    assert out.read_bytes()[52:] == (trained / 'epoch_2_int8.clipq').read_bytes()[52:]


def test_test_with_the_flag_runs_the_clipped_float_detector(trained, run, tmp_path):
    run('test.py', 'my.py', trained / 'epoch_2.pth', '--work-dir', tmp_path, *OPTIONS)
    (log,) = tmp_path.glob('*/*.log')
    assert '75 layers clipped' in log.read_text()
    assert 'Epoch(test) [1/1]' in log.read_text()


@pytest.mark.parametrize(
    ('tool', 'arguments', 'words'),
    [
        ('train.py', ['my.py', '--clipq', 'input_rnage=8'], ["['input_rnage']", 'input_range']),
        ('train.py', ['--clipq', 'my.py'], ["--clipq: found 'my.py'", 'wanted KEY=VALUE']),
        ('train.py', ['absent.py', '--clipq'], ['absent.py: found no file']),
        ('test.py', ['my.py', 'my.py', '--clipq', 'round=1', 'lq=2'], ['clipq.lq: found 2']),
        (
            'quantize.py',
            ['my.py', 'my.py', '--out', 'a.clipq', '--clipq', 'int8.images=2'],
            ["clipq.int8: found options ['images']", "'calib_images'"],
        ),
    ],
)
def test_wrong_flag_is_refused_in_one_sentence(run, tool, arguments, words):
    with pytest.raises(SystemExit) as caught:
        run(tool, *arguments)
    sentence = caught.value.code
    assert sentence.startswith('error: ')
    assert '\n' not in sentence
    assert all(word in sentence for word in words), sentence
