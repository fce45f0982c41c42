"""The emulation notices wrong kernels: bugs are planted in them, and the cases must find each."""

import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import emulation
import pytest
from cuda_cases import CASES, differing
from emulation import ORDERS, SOURCES, EmulatedBackend, compile_emulation, set_order

from mmclipq.ops.cuda.library import CudaLibrary

CONV, SOURCE, PRODUCT = 'conv.cuh', 'conv_source.cuh', 'product.cuh'
ACTIVATIONS, DEVICE, EMULATION = 'activations.cuh', 'device.cuh', 'emulation.h'
SPLIT_END = '(device::block_z() + 1) / p.splits)'
# Name: file, what stands in it, and what is planted instead.
BUGS = {
    'padding forgotten': (SOURCE, 'y * p.step_y - p.padding_y', 'y * p.step_y'),
    'stride of columns for rows': (SOURCE, 'y * p.step_y - ', 'y * p.step_x - '),
    'dilation forgotten': (SOURCE, 's * p.dilation_x', 's'),
    'copies not awaited': (CONV, 'wait<kStages - 2>', 'wait<kStages - 1>'),
    'no barrier before buffers are used again': (CONV, 'device::synchronize();  // this', '//'),
    'the wrong buffer read': (CONV, 'int reads = 0', 'int reads = 1'),
    'lanes name the wrong lines': (CONV, 'i * 16 + (lane & 15)', 'i * 16 + (lane & 7)'),
    'weights of the next output': (SOURCE, 'first_output + line', 'first_output + 1 + line'),
    'channels of the next tap': (SOURCE, 'channel -= p.channels;', 'channel -= p.channels - 16;'),
    'taps of few channels mixed': (SOURCE, 'chunk) + v * 4, from', 'chunk) + (v ^ 1) * 4, from'),
    'a split reads one step too few': (CONV, SPLIT_END, f'{SPLIT_END} - (p.splits > 1)'),
    'split sums stay': (CONV, '*sum = 0;', ''),
    'the ticket stays': (CONV, 'if (t == 0) p.counters[tile] = 0;', ''),
    'results beyond the last output stored': (CONV, '&& n + e < p.outputs; ++e) to', '; ++e) to'),
    'uint8 codes read as int8': (CONV, 'found = with_tile<kSigned>', 'found = with_tile<true>'),
    'residual of the next pixel': (PRODUCT, 'return m;', 'return m > 0 ? m - 1 : m;'),
    'nearest row of the residual': (
        PRODUCT,
        'p.row_of[row]',
        'row * p.residual_height / p.rows / 2',
    ),
    'residual on the wrong side': (PRODUCT, '== kBeforeActivation ?', '== kAfterActivation ?'),
    'bias twice': (PRODUCT, 'device::from_int(acc), m), b)', 'device::from_int(acc), m), b + b)'),
    'no upper bound of relu6': (ACTIVATIONS, 'return v < alpha ? v : alpha;', 'return v;'),
    'zeros outside where a code stands for zero': (SOURCE, 'return p.outside;', 'inside = false;'),
    'correction forgotten': (CONV, 'sums[i][j][e] + correction[e & 1]', 'sums[i][j][e]'),
    'offset of the residual forgotten': (PRODUCT, ' - p.residual_offset', ''),
    'offset of the result forgotten': (DEVICE, '(steps + offset)', '(steps)'),
    'smooth activations change places': (CONV, '& 3] = slots[k *', '& 3] = slots[(k ^ 1) *'),
    'steps for values after a smooth activation': (PRODUCT, 'device::mul(v, p.scale)', 'v'),
    'ties away from zero': (EMULATION, 'std::nearbyint(', 'std::round('),
}


FOUND = 3


def look_for_differences(path):
    """Ends the process with FOUND if any case, tile, split or order shows a difference."""
    library = EmulatedBackend.emulated = CudaLibrary(path)
    choices = [(tile.number, splits) for tile in library.tiles[2:] for splits in (1, 3)]
    for order in ORDERS[::3]:
        set_order(library, *order)
        for EmulatedBackend.forced in choices:
            for case in CASES:
                if differing('cuda_emulation', case, repeat=2):
                    os._exit(FOUND)
    os._exit(0)


def outcome(path):
    """Exit code of a process of its own, because wrong kernels may crash or wait for ever."""
    process = multiprocessing.get_context('fork').Process(target=look_for_differences, args=(path,))
    process.start()
    process.join(120)
    process.kill()
    return process.exitcode


@pytest.fixture(scope='module')
def libraries(tmp_path_factory):
    """The kernels as they are, and with each bug: library files being compiled, by name."""
    if emulation.REASON:
        pytest.skip(emulation.REASON)
    root = tmp_path_factory.mktemp('planted')

    def compile_with(name, number):
        folder = root / str(number)
        shutil.copytree(SOURCES, folder / 'csrc')
        if name is not None:
            file, right, wrong = BUGS[name]
            path = folder / 'csrc' / 'cuda' / file
            text = path.read_text()
            assert text.count(right) == 1, f'found {text.count(right)} of {right!r}, wanted one'
            path.write_text(text.replace(right, wrong))
        compile_emulation(folder / 'emulated.so', folder / 'csrc', '-O1', '-Wno-error')
        return folder / 'emulated.so'

    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(compile_with, name, number)
            for number, name in enumerate((None, *BUGS))
        }


def test_right_kernels_pass(libraries):
    assert outcome(libraries[None].result()) == 0


@pytest.mark.parametrize('bug', BUGS)
def test_planted_bugs_are_found(libraries, bug):
    found = outcome(libraries[bug].result())
    crashed = found in (-signal.SIGSEGV, -signal.SIGABRT)
    assert found == FOUND or crashed
