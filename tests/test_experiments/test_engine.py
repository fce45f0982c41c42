"""The engine on a stub: what is done is kept, what is not is done, and failures are told."""

import pytest
from finished import Done

from mmclipq.errors import ClipQError
from mmclipq.experiments.engine import Store
from mmclipq.experiments.files import LOG, RESULT, write
from mmclipq.experiments.recipe import Job


def job(name, *needs):
    config = "{'train_cfg': {'max_epochs': 2}}"
    return Job('train' if not needs else 'measure', name, f'key-{name}', {}, config, needs)


A = job('a')
B, C = job('b', A), job('c', A)
D = job('d', B, C)


class Stub:
    """Starts jobs that are done at once; ``fail`` and ``stop`` name those that are not."""

    def __init__(self, fail=(), stop=()):
        self.fail, self.stop, self.started = fail, stop, []

    def __call__(self, folder, threads):
        key = folder.name.partition('-')[2]
        name = key.removeprefix('key-')
        if name in self.stop:
            raise KeyboardInterrupt
        self.started.append(name)
        if name in self.fail:
            (folder / LOG).write_text('first\nValueError: no\n')
            return Done(1)
        write(folder / RESULT, {'key': key})
        return Done()


def test_jobs_are_done_once_each_after_what_it_needs(tmp_path):
    stub = Stub()
    store = Store(tmp_path, stub)
    assert store.run([D, C, A]) == []
    assert stub.started == ['a', 'b', 'c', 'd']
    assert store.run([D, C, A]) == []
    assert len(stub.started) == 4


def test_an_interrupted_call_goes_on_where_it_was(tmp_path):
    first = Stub(stop=['c'])
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, first).run([D])
    assert first.started == ['a', 'b']
    second = Stub()
    assert Store(tmp_path, second).run([D]) == []
    assert second.started == ['c', 'd']


def test_running_jobs_are_ended_with_an_interruption(tmp_path):
    ended = []

    class Running(Done):
        def poll(self):
            raise KeyboardInterrupt

        def terminate(self):
            ended.append('asked')

        def wait(self):
            ended.append('waited')
            return 0

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, lambda folder, threads: Running()).run([A])
    assert ended == ['asked', 'waited']


def test_a_failed_job_is_told_and_what_needs_it_left_out(tmp_path):
    stub = Stub(fail=['b'])
    failed = Store(tmp_path, stub).run([D])
    assert stub.started == ['a', 'b', 'c']
    assert failed[0].startswith('b: failed (1), ValueError: no; see ')
    assert failed[1] == 'd: left out, because "b" failed'


def test_two_at_once_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    found = []
    stub = Stub()

    def start(folder, threads):
        found.append(threads)
        return stub(folder, threads)

    assert Store(tmp_path, start).run([D], at_once=2) == []
    assert found == [2] * 4


def test_a_result_of_another_job_or_half_of_one_is_none(tmp_path):
    store = Store(tmp_path, Stub())
    folder = store.describe(A)
    write(folder / RESULT, {'key': 'other'})
    assert store.result(A) is None
    (folder / RESULT).write_text('{"key": "key-')
    assert store.result(A) is None


def test_a_folder_has_one_process_at_work(tmp_path):
    store = Store(tmp_path, Stub())
    with store.locked(), pytest.raises(ClipQError, match='found another process at work there'):
        Store(tmp_path, Stub()).run([A])
    assert Store(tmp_path, Stub()).run([A]) == []
