"""The command-line tools as a user calls them: what they write, print and refuse."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmclipq.backends.base import backend_class

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'quickstart' / 'clipq_yolov3_digits.py'
OTHER = ROOT / 'configs' / 'bccd' / 'yolov3_d53_bccd.py'
SMALL = (
    ['--cfg-options', 'clipq.int8.calib_images=2', 'clipq.observe_iters=1']
    + ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=4']
    + ['default_hooks.checkpoint.interval=1', 'model.test_cfg.conf_thr=0.0']
    + ['model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=5', 'model.test_cfg.nms_pre=9']
    + [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    + [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]
)


def command(tool: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / tool), *map(str, arguments)]


@pytest.fixture(scope='session')
def environment(digits_root) -> dict[str, str]:
    return {**os.environ, 'DIGITS_ROOT': str(digits_root), 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='session')
def run(environment, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a tool in an empty folder."""
    folder = tmp_path_factory.mktemp('cwd')

    def call(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(tool, *arguments), capture_output=True, text=True, env=environment, cwd=folder
        )

    return call


@pytest.fixture(scope='session')
def trained(run, tmp_path_factory) -> Path:
    """Folder of one epoch of ``tools/train.py``."""
    folder = tmp_path_factory.mktemp('trained')
    done = run('train.py', CONFIG, '--work-dir', folder, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_train_writes_a_checkpoint_and_its_int8_file(trained):
    files = {path.name for path in trained.iterdir()}
    assert {'epoch_1.pth', 'epoch_1_int8.clipq'} <= files
    assert not [name for name in files if name.endswith('.part')]
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=True)
    assert len(checkpoint['clipq']) == 75


def test_quantize_writes_what_test_evaluates(run, trained, tmp_path):
    out = tmp_path / 'made.clipq'
    done = run('quantize.py', CONFIG, trained / 'epoch_1.pth', '--out', out, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f'{out}: {out.stat().st_size / 2**20:.2f} MiB, ' in done.stdout
    assert ' layers int8, 0 steps left in float' in done.stdout
    # The hook exported the same checkpoint on the same images.
    assert out.read_bytes()[52:] == (trained / 'epoch_1_int8.clipq').read_bytes()[52:]
    done = run('test.py', CONFIG, out, '--int8', '--work-dir', tmp_path / 'work', *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    name = backend_class('auto').name
    assert f'integer execution of {out} on {name}' in done.stdout + done.stderr
    assert 'coco/bbox_mAP:' in done.stdout + done.stderr


def test_check_alone_writes_nothing_and_tells_by_its_exit(run, trained, tmp_path):
    done = run('quantize.py', CONFIG, trained / 'epoch_1.pth', '--check', *SMALL)
    assert done.returncode == 1, done.stderr[-2000:]
    # After one epoch the detector finds nothing.
    assert '! AP of float on 2 calibration images: 0.000, wanted a detector' in done.stdout
    assert '  processor: ' in done.stdout
    both = run('quantize.py', CONFIG, 'any.pth', '--check', '--out', tmp_path / 'a.clipq')
    assert both.returncode == 2
    assert 'wanted either --out FILE.clipq or --check' in both.stderr


def test_test_against_a_float_checkpoint(run, trained, tmp_path):
    files = [trained / 'epoch_1_int8.clipq', '--int8', '--against', trained / 'epoch_1.pth']
    done = run('test.py', CONFIG, *files, '--work-dir', tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split('|') for line in done.stdout.splitlines() if line[:1] == '|']
    assert rows[0][1:5] == [' int8 against float ', ' float ', ' int8 ', ' difference ']
    names = [row[1].strip() for row in rows[2:]]
    assert names[:4] == ['AP', 'AP50', 'AP75', 'AP small']
    # After one epoch neither finds anything.
    assert rows[2][6].strip() == 'no difference that these images can show'


def test_test_without_int8_runs_the_float_checkpoint(run, trained, tmp_path):
    done = run('test.py', CONFIG, trained / 'epoch_1.pth', '--work-dir', tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'coco/bbox_mAP:' in done.stdout + done.stderr
    assert 'integer execution' not in done.stdout + done.stderr


@pytest.fixture
def truncated(trained, tmp_path) -> Path:
    path = tmp_path / 'truncated.clipq'
    path.write_bytes((trained / 'epoch_1_int8.clipq').read_bytes()[:-1000])
    return path


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    for word in words:
        assert word in last


@pytest.fixture
def refusal(digits_root, monkeypatch, tmp_path) -> Callable[..., str]:
    """What a tool says on exit; runs it in this process, because the imports take seconds."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits_root))
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)

    def call(tool: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        assert caught.value.code.startswith('error: ')
        assert '\n' not in caught.value.code
        return caught.value.code

    return call


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['absent.py', 'CHECKPOINT'], ['absent.py: found no file']),
        (['absent.py', 'absent.pth', '--int8'], ['absent.py: found no file']),
        (['CONFIG', 'absent.pth'], ['absent.pth: found no file', 'checkpoint']),
        (['CONFIG', 'absent.clipq', '--int8'], ['absent.clipq: found no file']),
        (['CONFIG', 'FILE'], ['found a .clipq file without --int8', 'add --int8']),
        (['CONFIG', 'CHECKPOINT', '--backend', 'reference'], ['--backend', 'wanted --int8']),
        (['CONFIG', 'FILE', '--int8', '--against', 'no.pth'], ['no.pth: found no file']),
        (['CONFIG', 'CHECKPOINT', '--against', 'CHECKPOINT'], ['--against', 'wanted --int8']),
        (['CONFIG', 'absent.pth', '--int8', '--backend', 'abacus'], ["'abacus'", 'reference']),
        (['CONFIG', 'absent.pth', '--int8', '--calib-images', '0'], ['--calib-images: found 0']),
        (['CONFIG', 'TRUNCATED', '--int8'], ['truncated.clipq: found ', 'is truncated']),
    ],
    ids=[
        *('config', 'both', 'checkpoint', 'file', 'no-int8', 'backend-alone'),
        *('against-none', 'against-alone', 'backend', 'count', 'truncated'),
    ],
)
def test_test_refuses_in_one_sentence(refusal, trained, truncated, tmp_path, arguments, words):
    names = {
        'CONFIG': CONFIG,
        'CHECKPOINT': trained / 'epoch_1.pth',
        'FILE': trained / 'epoch_1_int8.clipq',
        'TRUNCATED': truncated,
    }
    given = [names.get(argument, argument) for argument in arguments]
    sentence = refusal('test.py', *given, '--work-dir', tmp_path / 'work', *SMALL)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['absent.py', 'CHECKPOINT', '--out', 'OUT'], ['absent.py: found no file']),
        (['CONFIG', 'absent.pth', '--out', 'OUT'], ['absent.pth: found no file']),
        (['OTHER', 'CHECKPOINT', '--out', 'OUT'], ['epoch_1.pth', 'another architecture']),
        (['CONFIG', 'FILE', '--out', 'OUT'], ['epoch_1_int8.clipq: found no readable checkpoint']),
        (['CONFIG', 'CHECKPOINT', '--out', 'PTH'], ['out.pth', 'wanted an output file named']),
        (['CONFIG', 'CHECKPOINT', '--out', 'OUT', '--calib-dir', 'EMPTY'], ['found no image']),
        (['CONFIG', 'CHECKPOINT', '--out', 'OUT', '--calib-images', '0'], ['found 0, wanted']),
    ],
    ids=['config', 'checkpoint', 'architecture', 'no-pth', 'suffix', 'folder', 'count'],
)
def test_quantize_refuses_in_one_sentence(refusal, trained, tmp_path, arguments, words):
    (tmp_path / 'empty').mkdir()
    names = {
        'CONFIG': CONFIG,
        'OTHER': OTHER,
        'CHECKPOINT': trained / 'epoch_1.pth',
        'FILE': trained / 'epoch_1_int8.clipq',
        'OUT': tmp_path / 'made' / 'out.clipq',
        'PTH': tmp_path / 'made' / 'out.pth',
        'EMPTY': tmp_path / 'empty',
    }
    given = [names.get(argument, argument) for argument in arguments]
    sentence = refusal('quantize.py', *given)
    assert all(word in sentence for word in words), sentence
    assert [path.name for path in tmp_path.iterdir()] == ['empty']


def test_refusal_is_the_last_line_of_the_process(run, trained, tmp_path):
    wrong = [*SMALL, 'clipq.input_rnage=8']
    assert_refused(run('train.py', CONFIG, '--work-dir', tmp_path, *wrong), "'input_rnage'")
    out = tmp_path / 'out.clipq'
    done = run('quantize.py', OTHER, trained / 'epoch_1.pth', '--out', out)
    assert_refused(done, 'epoch_1.pth: found a checkpoint of another architecture')
    assert_refused(run('test.py', CONFIG, 'absent.pth'), 'absent.pth: found no file')
    assert not list(tmp_path.rglob('*.clipq')) + list(tmp_path.rglob('*.part'))


def test_interrupted_quantize_leaves_nothing(trained, environment, digits_root, tmp_path):
    many = tmp_path / 'images'
    many.mkdir()
    image = next((digits_root / 'JPEGImages').iterdir())
    for number in range(2000):
        (many / f'{number}.jpg').symlink_to(image)
    out = tmp_path / 'made' / 'out.clipq'
    options = ['--out', out, '--calib-dir', many, '--calib-images', '2000']
    process = subprocess.Popen(
        command('quantize.py', CONFIG, trained / 'epoch_1.pth', *options),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        # Tests in the background of a shell inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        seen = b''
        while b'/2000' not in seen and (read := process.stderr.read1()):
            seen += read
        assert b'calibration' in seen
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert b'Traceback' not in seen + rest
    assert b'interrupted; nothing half-written was left' in rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images']


def test_benchmark_times_what_is_installed(run, tmp_path):
    out, chart = tmp_path / 'out' / 'figures.json', tmp_path / 'out' / 'bars.png'
    options = ['--shape', '64', '64', '--rounds', '1', '--peers', 'torch,mmclipq', '--batch', '1,2']
    options += ['--threads', '1', '--json', out, '--chart', chart]
    done = run('benchmark.py', CONFIG, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split('|')[1].strip() for line in done.stdout.splitlines() if line[:1] == '|']
    both = ['---', 'torch', 'mmclipq']
    first = rows.index('image tensor to boxes, 1 thread, batch 1')
    assert rows[:first] == ['start', *both, 'dense part, 1 thread, batch 1', *both]
    assert rows[-4:] == ['dense part, 1 thread, batch 2', *both]
    figures = json.loads(out.read_text())
    assert [(d['threads'], d['batch']) for d in figures['dense']] == [(1, 1), (1, 2)]
    for row in [row for part in (*figures['dense'], *figures['whole']) for row in part['rows']]:
        assert 0 < row['least'] <= row['median'] <= row['largest']
    assert figures['giga_operations'] > 0
    assert {s['name']: s['file'] > 10**6 for s in figures['starts']} == dict.fromkeys(
        both[1:], True
    )
    assert all(s['memory'] > s['file'] for s in figures['starts'])
    assert chart.read_bytes()[1:4] == b'PNG'


def test_benchmark_names_the_peers_it_knows(run):
    done = run('benchmark.py', CONFIG, '--shape', '64', '64', '--peers', 'tflite')
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --peers: found ['tflite']")


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--device', 'cuda'], ['--device cuda: found 0 GPUs', 'wanted this', '--device cpu']),
        (['--device', 'gpu'], ['--device gpu: found no such device', 'wanted cpu, cuda']),
    ],
    ids=['no-gpu', 'unknown'],
)
def test_benchmark_refuses_devices_in_one_sentence(refusal, monkeypatch, options, words):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    sentence = refusal('benchmark.py', CONFIG, '--shape', '64', '64', *options)
    assert all(word in sentence for word in words), sentence


def test_storage_compares_with_the_first_config(run, tmp_path):
    stock = ROOT / 'configs' / 'quickstart' / 'faster_rcnn_mobilenetv2_digits.py'
    svd = tmp_path / 'svd.py'
    svd.write_text(
        f'_base_ = [{str(stock)!r}]\n'
        "model = dict(roi_head=dict(bbox_head=dict(type='mmclipq.SVDBBoxHead', svd_rank=16)))\n"
    )
    done = run('storage.py', stock, svd)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split('|') for line in done.stdout.splitlines() if line[:1] == '|'][2:]
    assert [row[1].strip() for row in rows] == [stock.stem, 'svd']
    whole, small = (float(row[4].strip().rstrip('%')) for row in rows)
    assert small < whole < 26
    first = float(rows[0][2])
    assert whole == pytest.approx(100 * float(rows[0][3]) / first, abs=0.2)
    assert small == pytest.approx(100 * float(rows[1][3]) / first, abs=0.2)
