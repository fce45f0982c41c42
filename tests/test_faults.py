"""Whatever happens at whatever moment, a file is the old one or the new one, and whole."""

import errno
import hashlib
import os
import random
import resource
import signal
import time
from pathlib import Path

import cv2
import pytest
import torch

from mmclipq.apis import load_int8, quantize, save_int8
from mmclipq.apis.calibration_data import config_batches
from mmclipq.errors import ClipQError
from mmclipq.exporters.openvino_ir import weights_file, write_pair
from mmclipq.graph import writing
from mmclipq.graph.writing import write_all_atomically, write_atomically

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
