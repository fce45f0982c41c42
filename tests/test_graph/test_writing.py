"""What killed writers leave is cleaned up, and what living ones are at work on is not."""

import ctypes
import os
import signal
from pathlib import Path

import pytest

from mmclipq.graph import writing
from mmclipq.graph.writing import replace_folder, temporary_folder, write_atomically


def killed_in(work):
    """Run ``work`` in a copy of this process, which it kills."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_this(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('nameless', [True, False])
@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, monkeypatch, nameless, call):
    path = tmp_path / 'a.clipq'
    with monkeypatch.context() as patch:
        if not nameless:
            patch.delattr(os, 'O_TMPFILE')
        patch.setattr(writing.os, call, kill_this)
        killed_in(lambda: write_atomically(path, b'new'))
    left = list(tmp_path.iterdir())
    assert len(left) == (0 if nameless and call == 'fsync' else 1)
    assert not path.exists()
    other = tmp_path / '.b.clipq.abcdefgh.part'  # of another file
    other.touch()
    write_atomically(path, b'again')
    assert path.read_bytes() == b'again'
    assert set(tmp_path.iterdir()) == {path, other}


def test_a_living_writer_keeps_what_it_writes(tmp_path, monkeypatch):
    path, replace = tmp_path / 'a', os.replace
    seen = []

    def between(source, target):
        monkeypatch.setattr(writing.os, 'replace', replace)
        write_atomically(path, b'second')
        seen.append(Path(source).read_bytes())
        replace(source, target)

    monkeypatch.setattr(writing.os, 'replace', between)
    write_atomically(path, b'first')
    assert seen == [b'first']
    assert path.read_bytes() == b'first'
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_that_was_taken_for_left_is_made_again(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'O_TMPFILE')
    lock, stolen = writing._lock, []

    def steal(handle, wait=True):
        lock(handle, wait)
        if not stolen:
            (part,) = tmp_path.iterdir()
            stolen.append(part)
            part.unlink()

    monkeypatch.setattr(writing, '_lock', steal)
    write_atomically(tmp_path / 'a', b'new')
    assert stolen
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'new']


def test_a_temporary_folder_of_a_killed_process_goes_with_the_next(tmp_path):
    def work():
        with temporary_folder(tmp_path, 'x-') as made:
            (made / 'file').write_bytes(b'left')
            kill_this()

    killed_in(work)
    (left,) = tmp_path.iterdir()
    assert (left / 'file').is_file()
    kept = tmp_path / 'x-kept'
    kept.mkdir()
    with temporary_folder(tmp_path, 'x-') as first, temporary_folder(tmp_path, 'x-') as second:
        assert set(tmp_path.iterdir()) == {first, second, kept}
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize('system', ['exchanges', 'refuses', 'lacks it'])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, system):
    old, new = tmp_path / 'old', tmp_path / 'new'
    for folder in (old, new):
        folder.mkdir()
        (folder / folder.name).touch()
    renamed = []
    if system != 'exchanges':
        library = type(
            'Library', (), {'renameat2': lambda *args: -1} if system == 'refuses' else {}
        )
        monkeypatch.setattr(ctypes, 'CDLL', lambda name: library)
    rename = Path.rename
    monkeypatch.setattr(Path, 'rename', lambda *paths: renamed.append(1) or rename(*paths))
    replace_folder(new, old)
    assert [path.name for path in old.iterdir()] == ['new']
    assert [path.name for path in new.iterdir()] == ['old']
    assert len(renamed) == (0 if system == 'exchanges' else 3)
    assert set(tmp_path.iterdir()) == {old, new}
