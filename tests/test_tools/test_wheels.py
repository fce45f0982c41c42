"""``tools/wheels.sh``: what is kept of a long build, and what is said while it runs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'wheels.sh'


@pytest.fixture
def bash(tmp_path):
    """Runs lines of bash with the script's functions, in a folder with a cache of its own."""

    def run(lines: str, **changes: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ['bash', '-c', f'set -euo pipefail\n. {SCRIPT}\n{lines}'],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                'PATH': '/usr/local/bin:/usr/bin:/bin',
                'HOME': str(tmp_path),
                'LIVE_SLEEP': '0.02',
                **changes,
            },
        )

    return run


@pytest.fixture
def python(tmp_path):
    """A stand-in for Python that has torch 9.9 and whose pip takes a moment to make a wheel."""
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'torch.py').write_text(
        "__version__ = '9.9+cpu'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    program = tmp_path / 'python'
    program.write_text(
        '#!/bin/bash\n'
        f'export PYTHONPATH={tmp_path}/modules PYTHONDONTWRITEBYTECODE=1\n'
        f'if [ "$1" != -m ]; then exec {sys.executable} "$@"; fi\n'
        f'echo "$MAX_JOBS $*" >>{tmp_path}/pip\n'
        'echo "[7/95] c++ roi_align.cpp"\n'
        'sleep 0.1\n'
        'if [ -n "${BROKEN:-}" ]; then echo "no such header"; exit 3; fi\n'
        'member=mmcv/ops.py\n'
        'if [ -n "${STALE:-}" ] && [[ " $* " != *" --no-cache-dir "* ]]; then\n'
        '  member=mmcv/_ext.so\n'
        'fi\n'
        'while [ "$1" != --wheel-dir ]; do shift; done\n'
        f'mkdir -p mmcv; echo content >$member; {sys.executable} -m zipfile -c '
        '"$2/mmcv-2.1.0-cp311-any.whl" $member\n'
    )
    program.chmod(0o755)
    return program


BUILD = 'built_wheel ./python mmcv==2.1.0 log; echo "wheel $wheel"'


def test_a_wheel_is_built_once_and_found_by_the_next(bash, python, tmp_path):
    first, second = bash(BUILD, MAX_JOBS='3'), bash(BUILD)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "building mmcv's operators: 0:00" in first.stdout
    assert "building mmcv's operators: done in 0:0" in first.stdout
    path = first.stdout.splitlines()[-1]
    assert second.stdout.splitlines() == [path.replace('wheel', 'found', 1), path]
    (called,) = (tmp_path / 'pip').read_text().splitlines()
    assert called.startswith('3 -m pip wheel')
    name = Path(path.split()[1]).parent.name
    assert name.startswith('mmcv-2.1.0-torch9.9+cpu-py3.')
    assert name.endswith('-cpu')


def test_a_wheel_of_pips_cache_that_does_not_load_is_built_again(bash, python, tmp_path):
    done = bash(BUILD, STALE='1')
    assert done.returncode == 0, done.stderr
    assert "the wheel in pip's cache was built for another torch" in done.stdout
    cached, built = (tmp_path / 'pip').read_text().splitlines()
    assert '--no-cache-dir' in built
    assert '--no-cache-dir' not in cached
    with zipfile.ZipFile(done.stdout.split()[-1]) as wheel:
        assert [Path(name).name for name in wheel.namelist()] == ['ops.py']


def test_another_torch_or_place_finds_none(bash, python, tmp_path):
    assert bash(BUILD).returncode == 0
    (tmp_path / 'modules' / 'torch.py').write_text(
        "__version__ = '9.8+cpu'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    assert 'building' in bash(BUILD).stdout
    assert 'building' in bash(BUILD, XDG_CACHE_HOME=str(tmp_path / 'other')).stdout
    assert 'torch9.8+cpu' in bash(BUILD, FORCE_CUDA='1').stdout
    assert len((tmp_path / 'pip').read_text().splitlines()) == 4
    assert len(list((tmp_path / '.cache' / 'mmclipq' / 'wheels').iterdir())) == 3


@pytest.mark.parametrize('damage', ['changed', 'no-sum', 'empty-sum'])
def test_a_damaged_wheel_is_built_again(bash, python, tmp_path, damage):
    wheel = Path(bash(BUILD).stdout.split()[-1])
    sums = wheel.with_name('SHA256SUMS')
    if damage == 'changed':
        wheel.write_text('other\n')
    elif damage == 'no-sum':
        sums.unlink()
    else:
        sums.write_text('')
    assert bash(f'kept_wheel {wheel.parent}').stdout == ''
    assert 'building' in bash(BUILD).stdout
    assert zipfile.is_zipfile(wheel)
    assert bash(f'kept_wheel {wheel.parent}').stdout == f'{wheel}\n'


def test_a_failed_build_says_why_and_leaves_nothing(bash, python, tmp_path):
    done = bash(BUILD, BROKEN='1')
    assert done.returncode != 0
    assert 'no such header' in done.stderr
    assert 'failed after 0:0' in done.stderr
    assert not (tmp_path / '.cache').exists()


def test_the_living_line_tells_how_far_the_compiler_is(bash, tmp_path):
    (tmp_path / 'log').write_text('Building\n[3/95] c++ a.cpp\n[12/95] c++ b.cpp\nwarning: x\n')
    assert bash('last_step log').stdout == '12 of 95 files\n'
    (tmp_path / 'log').write_text('Collecting\n  Preparing metadata\n')
    assert bash('last_step log').stdout == 'Preparing metadata\n'
    assert int(bash('jobs_for_memory', OMP_NUM_THREADS='1').stdout) >= 1
