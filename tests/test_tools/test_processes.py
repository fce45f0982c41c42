"""The tools over two processes on a machine without GPU: what they write is that of one."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmclipq.apis.shares import share
from mmclipq.engine.cpu_runner import process_environment
from mmclipq.errors import ClipQError

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
CONFIG = ROOT / 'configs' / 'quickstart' / 'clipq_yolov3_digits.py'
SMALL = (
    ['--cfg-options', 'clipq.int8.calib_images=2', 'clipq.observe_iters=1']
    + ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=3']
    + ['default_hooks.checkpoint.interval=1', 'model.test_cfg.conf_thr=0.0']
    + ['model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=20']
    + [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    + [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]
)
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
SESSION = Path(__file__).with_name('session.py')


def run(commands: list[list], digits_root: Path, folder: Path, launcher: list[str]) -> None:
    """Runs tools one after the other, without GPUs, in one process or in those of a launcher."""
    listed = folder / 'commands.json'
    listed.write_text(json.dumps([[str(word) for word in words] for words in commands]))
    environment = {
        'DIGITS_ROOT': str(digits_root),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
        'PYTHONWARNINGS': 'ignore',
    }
    done = subprocess.run(
        [sys.executable, *launcher, str(SESSION), str(listed)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=folder,
    )
    (folder / 'said').write_text(done.stdout + done.stderr)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def after_training(trained: Path, folder: Path, images: list[Path], launcher: list[str]) -> list:
    """Commands that use what was trained, and write into ``folder``."""
    file, checkpoint = trained / 'epoch_1_int8.clipq', trained / 'epoch_1.pth'
    test = ['--work-dir', folder / 'work', *launcher, *SMALL]
    infer = ['--out', folder, '--batch-size', '2', '--score-thr', '0', '--no-pictures']
    return [
        [TOOLS / 'test.py', CONFIG, file, '--int8', '--out', folder / 'int8.pkl', *test],
        [TOOLS / 'test.py', CONFIG, checkpoint, '--out', folder / 'float.pkl', *test],
        [TOOLS / 'quantize.py', CONFIG, checkpoint, '--out', folder / 'made.clipq', '--no-check']
        + SMALL,
        [TOOLS / 'infer.py', file, *images, *infer],
    ]


@pytest.fixture(scope='module')
def folders(digits_root, tmp_path_factory) -> tuple[Path, Path, Path]:
    """What two processes trained, what they made of it, and what one process made of it."""
    import mmdet

    trained, two, one = (tmp_path_factory.mktemp(name) for name in ('trained', 'two', 'one'))
    images = sorted((digits_root / 'JPEGImages').iterdir())[:5]
    launcher = ['--launcher', 'pytorch']
    train = [TOOLS / 'train.py', CONFIG, '--work-dir', trained, *launcher, *SMALL]
    stock = [Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py', CONFIG]
    stock += [trained / 'epoch_1.pth', '--out', two / 'stock.pkl', '--work-dir', two / 'work']
    stock += [*launcher, *SMALL, 'runner_type=mmclipq.CpuRunner']
    commands = after_training(trained, two, images, launcher)
    run([train, stock, *commands], digits_root, two, TORCHRUN)
    run(after_training(trained, one, images, []), digits_root, one, [])
    return trained, two, one


def test_two_processes_train_on_their_shares_and_export_once(folders):
    trained = folders[0]
    files = {path.name for path in trained.iterdir()}
    assert {'epoch_1.pth', 'epoch_1_int8.clipq'} <= files
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=True)
    assert len(checkpoint['clipq']) == 75
    (log,) = trained.glob('*/*.log')
    assert 'Epoch(train) [1][2/2]' in log.read_text()  # 12 images, 3 at a time, twice


def figures(folder: Path) -> list[str]:
    """What the evaluations of a folder's log say, all digits of them, in their order."""
    logs = '\n'.join(path.read_text() for path in sorted(folder.glob('work/*/*.log')))
    return re.findall('coco/bbox_mAP: .*?(?=  data_time)', logs)


def test_two_processes_have_the_ap_of_one(folders):
    _, two, one = folders
    said = figures(one)
    assert len(said) == 2
    stock, *others = figures(two)
    assert others == said
    assert stock == said[1]


@pytest.mark.parametrize('name', ['int8', 'float', 'stock'])
def test_two_processes_find_the_boxes_of_one(folders, name):
    _, two, one = folders
    found = [
        {image['img_id']: image['pred_instances'] for image in pickle.loads(path.read_bytes())}
        for path in (one / f'{name.replace("stock", "float")}.pkl', two / f'{name}.pkl')
    ]
    assert sum(len(boxes['scores']) for boxes in found[0].values()) == 120
    assert found[0].keys() == found[1].keys()
    for image, boxes in found[0].items():
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(boxes[key], found[1][image][key])


def test_quantize_of_two_processes_writes_the_file_of_one(folders):
    trained, two, one = folders
    # The checksum of what follows, which names no time; the first of two processes wrote the third.
    files = [folder / 'made.clipq' for folder in (two, one)] + [trained / 'epoch_1_int8.clipq']
    first, *others = (file.read_bytes()[52:] for file in files)
    assert others == [first, first]


def test_infer_of_two_processes_writes_the_files_of_one(folders):
    _, two, one = folders
    found = [{p.name: p.read_text() for p in (f / 'preds').iterdir()} for f in (two, one)]
    assert len(found[0]) == 5
    assert found[0] == found[1]
    for folder in (two, one):
        assert (folder / 'said').read_text().count('5 images, 100 objects') == 1


def test_shares_are_whole_batches_and_all_there():
    items = list(range(11))
    shares = [share(items, 2, rank, 3) for rank in range(3)]
    assert shares == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10]]
    assert share(items, 2, 0, 1) == items
    assert share([1], 4, 1, 2) == []


SLURM = {'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1'}


def test_slurm_and_mpi_become_the_variables_of_torch():
    found = process_environment('slurm', {**SLURM, 'MASTER_ADDR': 'first'})
    assert found == {
        'RANK': '3',
        'WORLD_SIZE': '4',
        'LOCAL_RANK': '1',
        'MASTER_ADDR': 'first',
        'MASTER_PORT': '29500',
    }
    names = ('RANK', 'SIZE', 'LOCAL_RANK')
    mpi = {f'OMPI_COMM_WORLD_{name}': str(value) for value, name in enumerate(names)}
    found = process_environment('mpi', {**mpi, 'MASTER_PORT': '7'})
    assert [found[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')] == ['0', '1', '2']
    assert (found['MASTER_ADDR'], found['MASTER_PORT']) == ('127.0.0.1', '7')


def test_slurms_first_machine_is_asked_for(tmp_path, monkeypatch):
    program = tmp_path / 'scontrol'
    program.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostname n[1-2]" ] && echo n1 && echo n2\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    nodes = {**SLURM, 'SLURM_NODELIST': 'n[1-2]'}
    assert process_environment('slurm', nodes)['MASTER_ADDR'] == 'n1'
    with pytest.raises(ClipQError, match="SLURM_NODELIST='other'.*set MASTER_ADDR$"):
        process_environment('slurm', {**nodes, 'SLURM_NODELIST': 'other'})


@pytest.mark.parametrize(
    ('launcher', 'words'),
    [
        ('pytorch', 'found no variable RANK, .*; write torchrun --nproc-per-node 2'),
        ('slurm', 'found no variable SLURM_PROCID, .*; write srun --ntasks 2'),
        ('mpi', 'found no variable OMPI_COMM_WORLD_RANK, .*; write mpirun -np 2'),
        ('ray', "found 'ray', wanted one of pytorch, slurm, mpi or none"),
    ],
)
def test_a_process_that_no_launcher_started_is_told_how(launcher, words):
    with pytest.raises(ClipQError, match=f'^--launcher.*{words}'):
        process_environment(launcher, {})


LEAVE = """
import os
from pathlib import Path
from torch import distributed, nn
from mmclipq.engine.cpu_runner import leave_processes

def threads():
    names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
    return sum('gloo' in name for name in names)

os.environ.update(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
distributed.init_process_group('gloo')
model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
model.cycle = [model]
del model
before = threads()
leave_processes()
print(before > 0, threads(), distributed.is_initialized())
"""


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='no list of threads in /proc')
def test_no_thread_of_a_process_group_outlives_it():
    done = subprocess.run([sys.executable, '-c', LEAVE], capture_output=True, text=True)
    assert done.stdout == 'True 0 False\n', done.stdout + done.stderr[-2000:]
