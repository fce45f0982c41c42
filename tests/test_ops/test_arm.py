"""The operators built for Arm and run by emulation give the bytes that x86 gives."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / 'mmclipq' / 'ops' / 'csrc' / 'cpu'
COMPILER, EMULATOR = 'aarch64-linux-gnu-g++', 'qemu-aarch64'
CASES = Path(__file__).with_name('product_cases.cpp')
LAYERS = 600

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() != 'x86_64' or not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f'wants an x86 machine with {COMPILER} and {EMULATOR} '
        '(Debian: g++-aarch64-linux-gnu, qemu-user)',
    ),
]


def build(compiler: str, machine: str, program: Path, *flags: str, sources: Path = SOURCES) -> Path:
    """``program``, of all operators and ``product_cases.cpp``."""
    folders = [sources, sources / machine]
    files = [*(path for folder in folders for path in folder.glob('*.cpp')), CASES]
    options = ['-O2', '-std=c++17', '-fopenmp', '-ffp-contract=off', *flags]
    options += [f'-I{folder}' for folder in folders]
    subprocess.run([compiler, *options, '-o', str(program), *map(str, files)], check=True)
    return program


def results(*command: str) -> tuple[bytes, str]:
    """What the cases write, and the generation of instructions that they used."""
    done = subprocess.run(command, check=True, capture_output=True)
    return done.stdout, done.stderr.decode().strip()


@pytest.fixture(scope='module')
def programs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp('arm')
    strict = ['-Wall', '-Wextra', '-Werror', '-static']
    x86 = build('g++', 'x86', folder / 'x86_cases')
    return x86, build(COMPILER, 'arm', folder / 'arm_cases', *strict)


@pytest.fixture(scope='module')
def expected(programs) -> bytes:
    written, _ = results(str(programs[0]), str(LAYERS), '1')
    assert len(set(written)) == 256
    return written


@pytest.mark.parametrize(
    ('processor', 'generation', 'used'),
    [('max', 9, 1), ('max', 0, 0), ('cortex-a53', 9, 0), ('cortex-a76', 9, 1)],
)
def test_results_are_those_of_x86(programs, expected, processor, generation, used):
    command = [EMULATOR, '-cpu', processor, str(programs[1]), str(LAYERS), str(generation)]
    written, said = results(*command)
    assert said == f'generation {used}'
    assert written == expected


def test_a_wrong_sign_is_found(programs, expected, tmp_path):
    """The comparison sees codes that are taken as those of the other sign."""
    copy = tmp_path / 'cpu'
    shutil.copytree(SOURCES, copy)
    shutil.copytree(SOURCES.parent / 'common', tmp_path / 'common')
    kernels = copy / 'arm' / 'kernels.cpp'
    text = kernels.read_text()
    assert text.count('sum_quad_block, 128}') == 1
    kernels.write_text(text.replace('sum_quad_block, 128}', 'sum_quad_block}'))
    program = build(COMPILER, 'arm', tmp_path / 'wrong', '-static', sources=copy)
    assert results(EMULATOR, str(program), str(LAYERS), '9')[0] != expected
