"""The CUDA backend on the CPU: its kernels compiled by g++ with emulated instructions."""

import itertools
import platform
import shutil
import subprocess
from pathlib import Path

from mmclipq.backends.base import register_backend
from mmclipq.backends.compiled.cuda import CudaBackend
from mmclipq.ops.cuda.library import CudaLibrary
from mmclipq.ops.cuda.tiles import SPLITS

SOURCES = Path(__file__).parents[2] / 'mmclipq' / 'ops' / 'csrc'
OPTIONS = ['-std=c++17', '-ffp-contract=off', '-DCLIPQ_EMULATION', '-shared', '-fPIC',
           '-fvisibility=hidden', '-Wall', '-Wextra', '-Werror']  # fmt: skip
REASON = '' if shutil.which('g++') else 'found no g++'
if platform.machine() != 'x86_64':
    REASON = 'the emulation switches between its threads with x86-64 instructions'
ORDERS = list(itertools.product((False, True), repeat=2))
"""Whether copies arrive as late as they may, and whether threads take turns backwards."""


def compile_emulation(out, sources=SOURCES, *options):
    """Compile the kernels in the folder ``sources`` to the library file ``out``."""
    folder = sources / 'cuda'
    files = sorted(map(str, folder.glob('*.cu'))) + [str(folder / 'emulation.cpp')]
    command = ['g++', *OPTIONS, '-O3', *options, '-x', 'c++', *files, '-o', str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return CudaLibrary(out)


@register_backend
class EmulatedBackend(CudaBackend):
    """The backend with everything but the GPU.

    Attributes:
        emulated: The compiled emulation.
        forced: Number of the tile and splits that every product of fitting depth gets, or None.
    """

    name = 'cuda_emulation'
    emulated = None
    forced = None

    @staticmethod
    def unavailable(device):
        return REASON

    @classmethod
    def library(cls):
        return cls.emulated

    def _choose(self, planned, step, index, candidates):
        if self.forced is None:
            return
        tile, splits = self.forced
        found = [c for c in candidates if c.tile.number == tile and c.splits <= splits]
        if found:
            choice = max(found, key=lambda c: c.splits)
            step.tile, step.splits = choice.tile.number, choice.splits


def set_order(library, late, backwards):
    """Tell the emulation in which order things happen, see :data:`ORDERS`."""
    library._library.clipq_emulation_order(late, backwards)


def every_choice(library):
    """Number and splits of each tile."""
    return [(tile.number, splits) for tile in library.tiles for splits in SPLITS[:4]]
