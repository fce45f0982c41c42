"""The CUDA operators compile for every generation of GPUs without spilling registers."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from mmclipq.errors import ClipQError
from mmclipq.ops.cuda.library import CudaLibrary

SCRIPT = Path(__file__).parents[2] / 'mmclipq' / 'ops' / 'csrc' / 'build.py'
spec = importlib.util.spec_from_file_location('build_cuda', SCRIPT)
build_cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_cuda)

needs_nvcc = pytest.mark.skipif(
    build_cuda.find_nvcc() is None, reason='found no nvcc on the PATH or in CUDA_HOME'
)
# Shared memory that a block may have, in bytes, by compute capability (CUDA's programming guide).
SHARED = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 90: 227 << 10}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The library for four generations, and what the assembler said of its kernels."""
    out = tmp_path_factory.mktemp('cuda') / '_cuda.so'
    return out, build_cuda.build(out, '7.5;8.0;8.6;9.0', '-Xptxas', '-v')


@needs_nvcc
def test_no_kernel_spills_registers(built):
    _, text = built
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", text)
    convolutions = [number for name, number in kernels if 'ConvKernel' in name]
    assert {n: convolutions.count(n) for n in convolutions} == {str(n): 12 for n in SHARED}
    spills = re.findall(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes', text)
    assert len(spills) >= len(kernels)
    assert set(spills) == {('0', '0', '0')}


@needs_nvcc
@pytest.mark.parametrize('name', ['conv_s8', 'grouped_conv', 'elementwise', 'roi_align'])
def test_no_operation_is_fused(name):
    """A fused multiply-add rounds once, where the arithmetic rounds twice."""
    (source,) = (path for path in build_cuda.SOURCES if path.stem == name)
    command = [build_cuda.find_nvcc(), *build_cuda.OPTIONS, '-arch=compute_80', '--ptx']
    done = subprocess.run([*command, str(source), '-o', '-'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'mul.rn.f32' in done.stdout
    assert 'fma.' not in done.stdout
    assert ('mma.sync.aligned.m16n8k32' in done.stdout) == (name == 'conv_s8')


@needs_nvcc
def test_every_generation_has_tiles_that_fit(built):
    library = CudaLibrary(built[0])
    assert len(library.tiles) == 6
    for limit in SHARED.values():
        fitting = [tile for tile in library.tiles if tile.shared_bytes <= limit]
        assert {tile.few_channels for tile in fitting} == {True, False}
        assert len(fitting) >= 5


@needs_nvcc
def test_without_a_driver_it_says_so(built):
    try:
        assert CudaLibrary(built[0]).properties(0).multiprocessors > 0
    except ClipQError as error:
        assert re.match('GPU 0: .+', str(error))  # noqa: PT017  (both are right, by the machine)


@needs_nvcc
def test_architectures_as_torch_names_them():
    nvcc = build_cuda.find_nvcc()
    assert build_cuda.architecture_options('8.0 9.0+PTX', nvcc) == [
        '-gencode=arch=compute_80,code=sm_80',
        '-gencode=arch=compute_90,code=sm_90',
        '-gencode=arch=compute_90,code=compute_90',
    ]
    assert build_cuda.architecture_options('3.5;8.6', nvcc) == [
        '-gencode=arch=compute_86,code=sm_86'
    ]
    with pytest.raises(ValueError, match="found the architectures '3.5', wanted some of .*80"):
        build_cuda.architecture_options('3.5', nvcc)


def test_without_nvcc_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='found no nvcc'):
        build_cuda.build(tmp_path / 'out.so')
