"""The commands of the pages, run one after the other in a tiny project as a reader has it."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import ROOT, blocks, lines

pytestmark = pytest.mark.slow

PAGES = (
    'README.md',
    'docs/existing_project.md',
    'docs/without_training.md',
    'docs/processes.md',
    'docs/evaluating.md',
    'docs/zoo.md',
    'docs/storage.md',
    'docs/export.md',
    'docs/deploying/index.md',
    'docs/deploying/cpu.md',
    'docs/deploying/onnxruntime.md',
    'docs/deploying/openvino.md',
    'docs/deploying/tensorrt.md',
    'docs/deploying/fixed_point.md',
    'docs/wrong/slower.md',
    'docs/wrong/accuracy.md',
    'docs/wrong/tracing.md',
    'docs/wrong/files.md',
    'docs/wrong/versions.md',
)
# What no two cores can run in minutes, or no machine without it: installing, slurm, downloads, and
# the whole quickstart and suite, which are run as they are.
ELSEWHERE = ('pip install', 'mim ', 'srun ', 'GPUS=', 'bash tools/')
DOWNLOADS = ' published '
# Tools that need a package which is not among the pinned ones.
NEEDS = {'tools/prune.py': 'torch_pruning', 'work_dirs/pruned': 'torch_pruning'}
# What a reader's paths stand for in the tiny project, and what is smaller in it.
STANDS_FOR = (
    ('tools/', f'{ROOT}/tools/'),
    ('configs/quickstart/clipq_yolov3_digits.py', 'my_clipq_config.py'),
    ('configs/quickstart/finetune_yolov3_digits.py', 'my_detector.py'),
    ('epoch_8.pth', 'epoch_12.pth'),
    ('CONFIG FILE.', 'my_detector.py my.'),
    ('work_dirs/my_clipq_config/epoch_12_int8.clipq', 'my.clipq'),
    ('load_from=float.pth', 'load_from=epoch_12.pth'),
    ('--shape 640 640', '--shape 96 128 --rounds 1'),
    ('--max-drop 0.5', '--max-drop 100 --calib-images 4 --held-images 4'),
    ('--search', '--search --calib-images 2 --held-images 2'),
)


def can_run(command: str) -> bool:
    missing = [tool for tool, package in NEEDS.items() if find_spec(package) is None]
    elsewhere = command.startswith(ELSEWHERE) or DOWNLOADS in command
    return not elsewhere and not any(tool in command for tool in missing)


def tiny(command: str) -> str:
    for given, taken in STANDS_FOR:
        command = command.replace(given, taken)
    return command


@pytest.fixture(scope='module')
def environment(digits_root) -> dict[str, str]:
    paths = [str(Path(sys.executable).parent), os.environ['PATH']]
    return {
        **os.environ,
        'DIGITS_ROOT': str(digits_root),
        'OMP_NUM_THREADS': '1',
        'PATH': os.pathsep.join(paths),
        'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])),
        'PYTHONWARNINGS': 'ignore',
    }


def call(command: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ['bash', '-c', f'set -euo pipefail; {command}'],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    # Findings of a check are its result: after one epoch the detector finds nothing.
    accepted = (0, 1) if '--check' in command else (0,)
    assert done.returncode in accepted, f'{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}'
    assert 'Traceback' not in done.stderr, f'{command}\n{done.stderr[-3000:]}'


@pytest.fixture(scope='module')
def project(environment, digits_root, without_workers, tmp_path_factory) -> Path:
    """A folder with a detector's config, its checkpoint, its int8 files and some photographs."""
    folder = tmp_path_factory.mktemp('project')
    stock = ROOT / 'configs' / 'quickstart' / 'finetune_yolov3_digits.py'
    (folder / 'my_detector.py').write_text(
        f'_base_ = {str(stock)!r}\n{without_workers}'
        'train_cfg = dict(max_epochs=1)\n'
        'model = dict(test_cfg=dict(conf_thr=0.0, score_thr=0.0, max_per_img=5, nms_pre=9))\n'
        'default_hooks = dict(checkpoint=dict(interval=1))\n'
    )
    (folder / 'my_clipq_config.py').write_text(
        "_base_ = ['./my_detector.py', __import__('mmclipq').base_config()]\n"
        "load_from = 'epoch_12.pth'\n"
        'clipq = dict(observe_iters=1, int8=dict(calib_images=2))\n'
    )
    small = "_base_ = ['./my_detector.py', __import__('mmclipq').base_config('clipq_small')]\n"
    (folder / 'my_small.py').write_text(small + "load_from = 'epoch_12.pth'\n")
    (folder / 'points.json').write_text('{"one": [{"size": 0.12, "AP": 0.4}]}')
    call(tiny('python tools/train.py my_detector.py --work-dir float'), folder, environment)
    shutil.copy(folder / 'float' / 'epoch_1.pth', folder / 'epoch_12.pth')
    (folder / 'photos').mkdir()
    for image in sorted((digits_root / 'JPEGImages').iterdir())[:3]:
        shutil.copy(image, folder / 'photos')
    quantize = 'python tools/quantize.py my_detector.py epoch_12.pth --out my.clipq --no-check'
    call(tiny(quantize), folder, environment)
    for name, options in (('my.onnx', 'onnx'), ('my.xml', 'openvino')):
        export = f'python tools/export.py my.clipq --format {options} --end2end --out {name}'
        call(tiny(export), folder, environment)
    return folder


@pytest.mark.parametrize('page', PAGES)
def test_commands_of_a_page_run(page, project, environment):
    commands = [line for block in blocks((ROOT / page).read_text()) for line in lines(block)]
    run = [tiny(command) for command in commands if can_run(command)]
    assert run
    for command in run:
        call(command, project, environment)
