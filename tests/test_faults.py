"""Whatever happens at whatever moment, a file is the old one or the new one, and whole."""

import errno
import hashlib
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import _tool
import cv2
import pytest
import torch
from _seeds import one_stage
from mmengine.config import Config

from mmclipq.apis import build_detector, load_int8, quantize, save_int8
from mmclipq.apis.calibration_data import config_batches
from mmclipq.errors import ClipQError
from mmclipq.exporters.openvino_ir import weights_file, write_pair
from mmclipq.graph import writing
from mmclipq.graph.writing import write_all_atomically, write_atomically

ROOT = Path(__file__).parents[1]
NUMBER = itertools.count()
KILLS = 40
SIZE = 1 << 20


def killed(work, seconds):
    """Run ``work`` in a copy of this process and kill it with SIGKILL after a while."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:  # whatever happens, the copy is not to go on as this process
            os.write(begun, b'x')
            while True:
                work()
        finally:
            os._exit(1)
    os.read(ready, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(begun)


def moments(seed):
    rng = random.Random(seed)
    return [rng.uniform(0, 0.02) for _ in range(KILLS)]


@pytest.mark.parametrize('nameless', [True, False])
def test_a_killed_writer_leaves_a_whole_file(tmp_path, monkeypatch, nameless):
    if not nameless:
        monkeypatch.delattr(os, 'O_TMPFILE')
    path, contents = tmp_path / 'a.clipq', [bytes([letter]) * SIZE for letter in b'ab']
    write_atomically(path, contents[0])

    def work():
        for content in contents:
            write_atomically(path, content)

    for seconds in moments(0):
        killed(work, seconds)
        assert path.read_bytes() in contents
    left = [other for other in tmp_path.iterdir() if other != path]
    assert all(other.suffix == '.part' for other in left)
    if nameless:  # what has a name is whole
        assert all(other.read_bytes() in contents for other in left)


def pair(letter):
    weights = letter.encode() * SIZE
    checksum = hashlib.sha256(weights).hexdigest()
    return f'<rt_info><weights value="{checksum}"/></rt_info>{letter}'.encode(), weights


def test_a_killed_export_leaves_a_whole_pair(tmp_path):
    path, pairs = tmp_path / 'a.xml', [pair('a'), pair('b')]
    write_pair(path, *pairs[0])

    def work():
        for xml, weights in pairs:
            write_pair(path, xml, weights)

    for seconds in moments(1):
        killed(work, seconds)
        assert (path.read_bytes(), weights_file(path).read_bytes()) in pairs
    write_pair(path, *pairs[1])
    left = {other.name for other in tmp_path.iterdir() if other.suffix != '.part'}
    assert left == {'a.xml', 'a.bin'}


@pytest.mark.parametrize('step', [1, 2, 3])
def test_a_pair_is_whole_between_all_of_its_steps(tmp_path, monkeypatch, step):
    path, old, new = tmp_path / 'a.xml', pair('a'), pair('b')
    write_pair(path, *old)
    replace, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == step:
            raise SystemExit
        replace(source, target)

    monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(SystemExit):
        write_pair(path, *new)
    found = path.read_bytes(), weights_file(path).read_bytes()
    assert found == (new if step == 3 else old)


def test_a_mixed_pair_is_named(tmp_path):
    path = tmp_path / 'a.xml'
    write_pair(path, *pair('a'))
    (tmp_path / 'a.bin').write_bytes(b'b' * SIZE)
    with pytest.raises(ClipQError, match=r'a\.xml: found no a\.bin with its weights, wanted'):
        weights_file(path)


def in_a_child(work):
    """Text of the ClipQError that ``work`` ends with, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            text = 'nothing happened'
        except ClipQError as error:
            text = str(error)
        except BaseException as error:
            text = repr(error)
        os.write(write, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        return file.read()


@pytest.fixture
def made(cfg, model):
    return model, quantize(model, [torch.rand(1, 3, 64, 96)]), cfg, {'classes': ('a',)}


def test_a_full_disk_is_told_and_the_older_file_stays(tmp_path, made):
    path = tmp_path / 'a.clipq'
    save_int8(path, *made)
    before = path.read_bytes()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)
        save_int8(path, *made)

    text = in_a_child(work)
    assert text == f'{path}: found {os.strerror(errno.EFBIG)}, wanted a place to write to'
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert load_int8(path) is not None


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize('call', ['open', 'write', 'fsync'])
def test_every_refusal_of_the_system_is_a_sentence(tmp_path, monkeypatch, made, call, code):
    path = tmp_path / 'a.clipq'

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing.os, call, refuse)
    with pytest.raises(ClipQError) as caught:
        save_int8(path, *made)
    monkeypatch.undo()
    assert str(caught.value) == f'{path}: found {os.strerror(code)}, wanted a place to write to'
    assert list(tmp_path.iterdir()) == []


def test_of_several_files_none_is_replaced_if_one_cannot_be_written(tmp_path):
    first = tmp_path / 'a'
    first.write_bytes(b'old')
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(OSError, match='file'):
        write_all_atomically({first: b'new', tmp_path / 'file' / 'b': b'new'})
    assert first.read_bytes() == b'old'
    assert {path.name for path in tmp_path.iterdir()} == {'a', 'file'}


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'gone'])
def test_an_unreadable_image_of_the_data_set_is_named(cfg, tmp_path, damage):
    batches = config_batches(cfg, 3)
    path = next(batches)['data_samples'][0].img_path
    again = config_batches(cfg, 3)
    source, content = Path(path), Path(path).read_bytes()
    try:
        if damage == 'gone':
            source.unlink()
        else:
            source.write_bytes(content[:40] if damage == 'truncated' else b'')
        assert damage == 'gone' or cv2.imread(path) is None
        with pytest.raises(ClipQError, match='found no readable image') as caught:
            next(again)
        assert str(caught.value).startswith(path)
        assert '\n' not in str(caught.value)
    finally:
        source.write_bytes(content)


@pytest.fixture
def project(tmp_path, load_config, digits_root, monkeypatch):
    """A data set and a detector of its own, and the tools, in this process where none forks."""
    shutil.copytree(digits_root, tmp_path / 'data')
    monkeypatch.setenv('DIGITS_ROOT', str(tmp_path / 'data'))
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(tool, *arguments, workers=0):
        cfg = Config.fromfile(ROOT / 'configs/quickstart/_base_/digits.py')
        cfg.model = one_stage(classes=10)
        for name in ('train', 'val', 'test'):
            cfg[f'{name}_dataloader'].update(
                num_workers=workers, persistent_workers=False, batch_size=2
            )
        cfg.train_cfg.update(max_epochs=2, val_interval=1)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
        cfg.work_dir, cfg.default_scope = str(tmp_path / 'work'), 'mmdet'
        cfg.experiment_name = cfg.visualizer['name'] = f'faults_{next(NUMBER)}'
        cfg.dump(tmp_path / 'tiny.py')
        words = [tool, str(tmp_path / 'tiny.py'), *map(str, arguments)]
        if workers:  # forked from a process that has lived long, a worker can end its parent
            command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / f'{tool}.py')]
            done = subprocess.run([*command, *words[1:]], capture_output=True, text=True)
            assert done.returncode == 1
            return done.stderr.strip().splitlines()[-1]
        monkeypatch.setattr(sys, 'argv', words)
        with pytest.raises(SystemExit) as caught:
            _tool.run(importlib.import_module(tool).main)
        return caught.value.code

    run.folder, run.images = tmp_path, sorted((tmp_path / 'data' / 'JPEGImages').iterdir())
    return run


def in_split(project, split):
    infos = json.loads((project.folder / f'data/annotations/instances_{split}.json').read_text())
    return project.folder / 'data/JPEGImages' / infos['images'][-1]['file_name']


def checkpoint(folder):
    path = folder / 'float.pth'
    torch.save(
        {'state_dict': build_detector(one_stage(classes=10), random=True).state_dict()}, path
    )
    return path


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_training_cannot_read_is_named(project, workers):
    path = in_split(project, 'val')  # so that an epoch is over by then
    path.write_bytes(path.read_bytes()[:50])
    text = project('train', workers=workers)
    assert text.startswith(f'error: {path}: found no readable image (')
    assert text.endswith('restore it, or check data_root')
    assert '\n' not in text
    whole = project.folder / 'work' / 'epoch_1.pth'
    assert (project.folder / 'work' / 'last_checkpoint').read_text() == str(whole)
    assert torch.load(whole, weights_only=False)['meta']['epoch'] == 1


@pytest.mark.parametrize('tool', ['test', 'compare', 'analyze', 'quantize'])
def test_an_image_that_a_tool_cannot_read_is_named(project, tool):
    float_ = checkpoint(project.folder)
    path = in_split(project, 'train' if tool == 'quantize' else 'val')
    arguments = {
        'test': [float_],
        'compare': ['--float', float_],
        'analyze': [float_, '--out', project.folder / 'report', '--calib-images', '2'],
        'quantize': [float_, '--out', project.folder / 'a.clipq', '--no-check'],
    }[tool]
    path.unlink()
    text = project(tool, *arguments)
    assert text.startswith(f'error: {path}: found no readable image (')
    assert '\n' not in text
    assert not (project.folder / 'a.clipq').exists()


@pytest.mark.parametrize('tool', ['train', 'test', 'compare', 'analyze', 'quantize'])
def test_a_data_set_that_is_gone_is_a_sentence(project, tool):
    float_ = checkpoint(project.folder)
    arguments = {
        'train': [],
        'test': [float_],
        'compare': ['--float', float_],
        'analyze': [float_, '--out', project.folder / 'report'],
        'quantize': [float_, '--out', project.folder / 'a.clipq', '--no-check'],
    }[tool]
    shutil.rmtree(project.folder / 'data')
    text = project(tool, *arguments)
    assert text.startswith(f'error: {project.folder}/tiny.py: found ')
    assert 'instances_' in text
    assert 'data_root' in text
    assert '\n' not in text


def test_a_training_on_a_full_disk_is_a_sentence(project, monkeypatch):
    write = os.write

    def refuse(handle, data):
        if os.readlink(f'/proc/self/fd/{handle}').startswith(str(project.folder)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    monkeypatch.setattr(writing.os, 'write', refuse)
    text = project('train')
    assert text.startswith('error: ')
    assert 'No space left on device' in text
    assert '\n' not in text
