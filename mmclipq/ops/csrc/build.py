"""Builds the CUDA operators with NVIDIA's compiler alone; needs neither torch nor mmclipq.

``setup.py`` and the tests call :func:`build`; by hand: ``python build.py OUT.so``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = sorted((Path(__file__).parent / 'cuda').glob('*.cu'))
DEPENDS = [*SOURCES, *Path(__file__).parent.glob('*/*.*h'), Path(__file__)]
ARCHITECTURES = '7.5;8.0;8.6;8.9;9.0+PTX'
"""As in torch's TORCH_CUDA_ARCH_LIST; ``+PTX`` lets later GPUs compile it when they load it."""
# Every float operation that must be rounded by itself is an intrinsic, which nvcc never fuses; the
# option covers what is not.
OPTIONS = ['-std=c++17', '-O3', '--fmad=false', '-Xcompiler', '-fPIC,-fvisibility=hidden']


def find_nvcc() -> str | None:
    """Path of nvcc, that of CUDA_HOME first."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    return shutil.which('nvcc', path=f'{home}/bin') if home else shutil.which('nvcc')


def architecture_options(architectures: str, nvcc: str) -> list[str]:
    """nvcc's options for a list such as ``'8.0;9.0+PTX'``.

    Those that this nvcc does not know are left out.

    Raises:
        ValueError: if it knows none of them.
    """
    listed = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True, check=True)
    known = {line.removeprefix('compute_') for line in listed.stdout.split()}
    options = []
    for name in architectures.replace(' ', ';').split(';'):
        version, _, ptx = name.partition('+')
        number = version.replace('.', '')
        if number.rstrip('af') not in known:
            continue
        options.append(f'-gencode=arch=compute_{number},code=sm_{number}')
        if ptx:
            options.append(f'-gencode=arch=compute_{number},code=compute_{number}')
    if not options:
        wanted = ', '.join(sorted(known))
        raise ValueError(f'found the architectures {architectures!r}, wanted some of {wanted}')
    return options


def build(out: str | os.PathLike, architectures: str = ARCHITECTURES, *options: str) -> str:
    """Compile the operators to the library ``out``; returns what nvcc printed.

    Raises:
        FileNotFoundError: if there is no nvcc.
        RuntimeError: if it fails, with what it printed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError('found no nvcc on the PATH or in CUDA_HOME, wanted it for CUDA')
    gencode = architecture_options(architectures, nvcc)

    def call(*command: str) -> str:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f'{" ".join(command)}\n{done.stdout}')
        return done.stdout

    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f'{source.stem}.o') for source in SOURCES]
        jobs = int(os.environ.get('MAX_JOBS') or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            printed = pool.map(
                lambda pair: call(
                    nvcc, *OPTIONS, *gencode, *options, '-c', str(pair[0]), '-o', pair[1]
                ),
                zip(SOURCES, objects, strict=True),
            )
            text = ''.join(printed)
        call(nvcc, '-shared', '-cudart', 'static', *gencode, *objects, '-o', str(out))
    return text


if __name__ == '__main__':
    print(build(sys.argv[1], os.environ.get('TORCH_CUDA_ARCH_LIST') or ARCHITECTURES), end='')
