"""The operators around the graph under AddressSanitizer, with all tests of this folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmclipq.ops.cpu.library import why_unavailable

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / 'mmclipq' / 'ops' / 'csrc'
FILES = 'select.cpp', 'nms.cpp', 'pixels.cpp', 'candidates.cpp', 'assemble.cpp'
RUN = """
import ctypes, sys, pytest
from mmclipq.ops.cpu import boxes, heads, pixels
from mmclipq.ops.cpu.library import library
built, sanitized = library(), ctypes.CDLL(sys.argv[1])
names = 'select', 'nms', 'pixels', 'candidates', 'assemble'
for name in [f'clipq_{name}' for name in names]:
    ours, theirs = getattr(sanitized, name), getattr(built, name)
    ours.restype, ours.argtypes = theirs.restype, theirs.argtypes
boxes.library = heads.library = pixels.library = lambda: sanitized
sys.exit(pytest.main(['-q', '-x', '-s', '-p', 'no:cacheprovider', '-m', 'not slow', *sys.argv[2:]]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators'),
    pytest.mark.skipif(shutil.which('g++') is None, reason='no g++'),
]


def run(folder: Path, sources: Path, *tests: str) -> subprocess.CompletedProcess:
    """Run ``tests`` with the operators of ``sources`` built with the sanitizer."""
    library = folder / 'sanitized.so'
    flags = ['-O1', '-g', '-std=c++17', '-fopenmp', '-ffp-contract=off', '-shared', '-fPIC']
    flags += ['-fsanitize=address', '-D_GLIBCXX_SANITIZE_VECTOR=1']
    flags += ['-Wl,-Bsymbolic']  # not oneDNN's vectors, which tell the sanitizer nothing
    files = [str(sources / 'cpu' / name) for name in FILES]
    subprocess.run(['g++', *flags, '-o', str(library), *files], check=True)
    # The sanitizer looks for C++'s exceptions when the process starts.
    runtimes = [
        subprocess.run(['g++', f'-print-file-name={name}'], check=True, capture_output=True)
        for name in ('libasan.so', 'libstdc++.so.6')
    ]
    preload = ' '.join(found.stdout.decode().strip() for found in runtimes)
    environment = {**os.environ, 'LD_PRELOAD': preload, 'PYTHONPATH': str(ROOT)}
    environment['ASAN_OPTIONS'] = 'detect_leaks=0:verify_asan_link_order=0'
    command = [sys.executable, '-c', RUN, str(library), *tests]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_operators_stay_in_their_memory(tmp_path):
    done = run(tmp_path, SOURCES, str(Path(__file__).parent))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[:3000]


def test_a_row_too_many_is_found(tmp_path):
    shutil.copytree(SOURCES, tmp_path / 'csrc')
    source = tmp_path / 'csrc' / 'cpu' / 'select.cpp'
    text = source.read_text()
    planted = text.replace('s.place_stride == 1 && s.channel_stride != 1)', 's.place_stride == 1)')
    assert planted != text
    source.write_text(planted)
    tests = Path(__file__).parent / 'test_select_places.py'
    done = run(tmp_path, tmp_path / 'csrc', str(tests))
    assert done.returncode != 0
    assert 'AddressSanitizer' in done.stdout + done.stderr
