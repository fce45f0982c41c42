"""What a tool says first, and what it says when it is stopped first."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
# The fewest arguments that let each tool go on to its imports.
ARGUMENTS = {
    'analyze': ['a.py', 'a.pth', '--out', 'a'],
    'benchmark': ['a.py', '--shape', '64', '64'],
    'benchmark_training': ['a.py'],
    'calibrations': ['a.py', 'a.pth'],
    'compare': ['a.py', '--int8', 'a.clipq'],
    'compare_codes': [],
    'coverage': ['a.py'],
    'export': ['a.clipq', '--format', 'onnx', '--out', 'a.onnx'],
    'infer': ['a.clipq', 'a.jpg'],
    'kill': [],
    'make_digits': [],
    'make_trees': ['a', '--out', 'b'],
    'paper': ['table1', '--data', 'digits'],
    'prune': ['a.py', 'a.pth', '--out', 'a'],
    'zoo': ['a.py', 'a.pth', '--out', 'a'],
    'quantize': ['a.py', 'a.pth', '--out', 'a.clipq'],
    'soak': ['a.clipq'],
    'storage': ['a.py'],
    'test': ['a.py', 'a.pth'],
    'train': ['a.py'],
    'verify': ['a.py', 'a.pth', 'a.clipq'],
    'verify_export': ['a.py', 'a.clipq'],
}


def command(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TOOLS / f'{tool}.py'), *map(str, arguments)]


def plain_environment(**changes: str) -> dict[str, str]:
    """Without what would silence warnings."""
    return {k: v for k, v in os.environ.items() if k != 'PYTHONWARNINGS'} | changes


def interrupted(arguments: list[str], said: bytes, cwd: Path, python_path: str) -> bytes:
    """Send Ctrl-C once a process has ``said`` something: it must end with one line.

    Returns:
        What it prints afterwards.
    """
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=plain_environment(PYTHONPATH=python_path),
        # Tests in the background of a shell inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == said
        process.send_signal(signal.SIGINT)
        printed, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert error == b'interrupted; nothing half-written was left\n'
    assert process.returncode == 130
    return printed


def test_every_tool_is_here():
    names = {path.stem for path in TOOLS.glob('[!_]*.py')}
    # One imports nothing that takes time, the other lets a process of its own do it.
    assert names - {'rooms', 'fuzz'} == ARGUMENTS.keys()


PLAIN = 'import time\nprint("importing", flush=True)\ntime.sleep(60)\n'
IN_C = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError('initialization failed') from None
"""
SWALLOWED = """
import time
print("importing", flush=True)
for _ in range(2):
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize(
    ('tool', 'module'),
    [*((tool, PLAIN) for tool in sorted(ARGUMENTS)), ('quantize', IN_C), ('quantize', SWALLOWED)],
)
def test_an_interruption_during_imports_is_one_line(tool, module, tmp_path):
    for package in ('torch', 'cv2'):
        (tmp_path / f'{package}.py').write_text(module)
    folders = f'{tmp_path}{os.pathsep}{TOOLS.parent}'
    interrupted(command(tool, *ARGUMENTS[tool]), b'importing\n', tmp_path, folders)


@pytest.mark.parametrize(
    ('tool', 'arguments', 'said'),
    [
        ('infer', ['FILE', 'absent.jpg'], 'absent.jpg: found no file, wanted an image, a folder'),
        ('analyze', ['absent.py', 'absent.pth', '--out', 'a'], 'absent.py: found no file'),
        ('quantize', ['absent.py', 'absent.pth', '--out', 'a.clipq'], 'absent.py: found no file'),
    ],
)
def test_nothing_comes_before_the_sentence(tool, arguments, said, tmp_path):
    """No warning of another package; what is checked first is named, before anything is read."""
    (tmp_path / 'a.clipq').write_text('not even read')
    given = ['a.clipq' if argument == 'FILE' else argument for argument in arguments]
    done = subprocess.run(
        command(tool, *given),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=plain_environment(),
    )
    assert done.returncode == 1
    # onedl-mmdetection prints this line when it is imported.
    assert not re.sub(r'(.* - )?Could not import OneDL\. .*\n', '', done.stdout)
    assert done.stderr.startswith(f'error: {said}')
    assert done.stderr.count('\n') == 1


CLEANING = """
import sys, time
from _tool import run

def main(arguments):
    try:
        print('working', flush=True)
        time.sleep(60)
    finally:
        try:
            raise ValueError
        except ValueError:
            time.sleep(1.5)
        print('cleaned', flush=True)

run(main)
"""


def test_an_interruption_does_not_stop_the_cleaning_up_after_it(tmp_path):
    (tmp_path / 'cleaning.py').write_text(CLEANING)
    cleaning = [sys.executable, str(tmp_path / 'cleaning.py')]
    assert interrupted(cleaning, b'working\n', tmp_path, str(TOOLS)) == b'cleaned\n'
