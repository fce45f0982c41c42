"""Tools that are killed leave whole files and go on; a tool that does not is found."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _contents import digest_of
from _killing import Moment, moment, run_tool
from kill import Case, campaign

TOOLS = Path(__file__).parents[2] / 'tools'
VICTIM = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
from mmclipq.graph.writing import write_atomically

def main(arguments):
    way, folder, content = arguments[0], Path(arguments[1]), arguments[2].encode() * 1000
    path = folder / 'a'
    time.sleep(0.005)
    if way == 'removes first' and content[:3] == b'new':
        path.unlink(missing_ok=True)
        time.sleep(0.01)
    if way == 'leaves litter':
        scratch = folder / f'scratch{os.getpid()}'
        scratch.write_bytes(content)
        time.sleep(0.01)
        scratch.unlink()
    if way == 'does not go on':
        tries = folder / '.tries'
        done = int(tries.read_text()) + 1 if tries.exists() else 0
        tries.write_text(str(done))
        content += str(done).encode()
    if way == 'refuses to go on':
        lock = folder / '.lock'
        if lock.exists():
            sys.exit('error: locked')
        lock.touch()
        time.sleep(0.01)
        lock.unlink()
    if way == 'starts another':
        other = subprocess.Popen(['sleep', '60'])
        write_atomically(path, str(other.pid).encode())
        time.sleep(60)
    if way == 'writes in place':
        with path.open('wb', 0) as file:
            for start in range(0, len(content), 500):
                file.write(content[start:start + 500])
                time.sleep(0.002)
    else:
        write_atomically(path, content)
    if way == 'does not go on':
        tries.unlink()
"""


@pytest.fixture
def victim(tmp_path, monkeypatch):
    (tmp_path / 'victim.py').write_text(VICTIM)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop('victim', None)


@pytest.mark.parametrize(
    ('way', 'found'),
    [
        ('writes whole', None),
        ('writes in place', 'a is neither the old nor the new one'),
        ('removes first', 'a is gone'),
        ('leaves litter', 'is left over after the next run'),
        ('does not go on', 'a of the next run is not that of one alone'),
        ('refuses to go on', 'the next run exits with 1'),
    ],
)
def test_what_a_tool_does_wrong_is_found(victim, tmp_path, way, found):
    case = Case(way, 'victim', [[way, 'FOLDER', 'new']], [[way, 'FOLDER', 'old']])
    tally = campaign(case, 6, 0, tmp_path, show=False)
    if found is None:
        assert tally.wrong == []
        assert tally.killed >= 6
    else:
        assert any(found in text for text in tally.wrong), tally.wrong


def test_a_kill_takes_what_the_tool_has_started_with_it(victim, tmp_path):
    folder = tmp_path / 'work'
    folder.mkdir()
    end = run_tool('victim', ['starts another', str(folder), 'x'], folder, Moment(2, 0.05))
    assert end.killed
    other = int((folder / 'a').read_text())
    for _ in range(100):
        if not Path(f'/proc/{other}').exists():
            break
        if Path(f'/proc/{other}/stat').read_text().split()[2] == 'Z':
            break
        time.sleep(0.01)
    else:
        os.kill(other, 9)
        pytest.fail('it still runs')


def test_moments_are_made_again_and_lie_in_the_run():
    first, again = ([moment(random.Random(1), 7, 3.0) for _ in range(9)] for _ in range(2))
    assert first == again
    rng = random.Random(0)
    found = [moment(rng, 7, 3.0) for _ in range(200)]
    steps = [when.step for when in found if when.step]
    assert set(steps) == set(range(1, 8))
    assert 60 < len(steps) < 140
    assert all(0 <= when.seconds < (0.003 if when.step else 3.0) for when in found)


def test_times_do_not_change_a_digest():
    first = {'a': [1, {'train/time': 3.0, 'train/loss': 1.0}]}
    assert digest_of(first) == digest_of({'a': [1, {'train/time': 4.0, 'train/loss': 1.0}]})
    assert digest_of(first) != digest_of({'a': [1, {'train/time': 3.0, 'train/loss': 2.0}]})


def kill(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-W', 'ignore', str(TOOLS / 'kill.py'), *arguments]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_tools_that_are_killed():
    done = kill('--count', '1', '--only', 'train', 'quantize')
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.slow
def test_all_tools_that_are_killed_and_a_training_without_whole_checkpoints():
    done = kill('--count', '6')
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    done = kill('--count', '20', '--only', 'train-stock')
    assert done.returncode == 1
    assert 'last_checkpoint names' in done.stderr
