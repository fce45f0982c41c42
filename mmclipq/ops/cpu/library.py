"""Finds and loads the compiled CPU operators, once, on their first use."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch  # before the operators, so that its OpenMP is the only one

from ...errors import ClipQError

BUILD_COMMAND = (
    'pip install onednn-devel-cpu-gomp==2023.2.0, then in the folder of mmclipq: '
    'pip install --no-build-isolation --no-deps --force-reinstall .'
)


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    built = sorted(Path(__file__).parent.glob('_cpu*.so'))
    if not built:
        return f'it is not built; run: {BUILD_COMMAND}'
    try:
        # Its wheel puts oneDNN where no loader looks.
        onednn = Path(sys.prefix) / 'lib' / 'libdnnl.so.3'
        if onednn.is_file():
            ctypes.CDLL(str(onednn), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(built[0]))
        _declare(library)
    except (OSError, AttributeError) as error:  # AttributeError: built from other sources
        return f'it does not load ({error}); run: {BUILD_COMMAND}'
    if not library.clipq_has_products():
        return 'this x86 processor has no AVX2'
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the functions' types."""
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    library.clipq_product_create.restype = pointer
    library.clipq_product_create.argtypes = [*[pointer] * 4, text, size]
    library.clipq_product_destroy.argtypes = [pointer]
    library.clipq_product_compile.restype = pointer
    library.clipq_product_compile.argtypes = [
        *[pointer] * 3, size, pointer, ctypes.c_int32, pointer, pointer, text, size
    ]  # fmt: skip
    library.clipq_product_is_direct.argtypes = [pointer]
    library.clipq_compiled_destroy.argtypes = [pointer]
    library.clipq_run.argtypes = [pointer, size, pointer, text, size]
    library.clipq_peak.restype, library.clipq_peak.argtypes = size, [size]
    library.clipq_set_threads.argtypes = [ctypes.c_int32]
    library.clipq_select.restype, library.clipq_select.argtypes = size, [pointer, pointer]
    for name in ('clipq_candidates', 'clipq_assemble'):
        step = getattr(library, name)
        step.restype, step.argtypes = size, [pointer, pointer]
    library.clipq_pixels.argtypes = [pointer]
    library.clipq_lq_sum.restype, library.clipq_lq_sum.argtypes = ctypes.c_double, [pointer]
    library.clipq_lq_gradient.argtypes = [pointer, ctypes.c_float, pointer]
    library.clipq_nms.restype = size
    library.clipq_nms.argtypes = [
        pointer, pointer, size, ctypes.c_float, ctypes.c_float, size, pointer
    ]  # fmt: skip


def why_unavailable() -> str:
    """Why the operators cannot run here; empty if they can."""
    library = _load()
    return library if isinstance(library, str) else ''


def library() -> ctypes.CDLL:
    """The compiled operators.

    Raises:
        ClipQError: if they cannot run here.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise ClipQError(f'found no compiled CPU operators: {loaded}')
    return loaded


def follow_torch_threads() -> None:
    """Let the operators that this thread calls run on as many threads as torch's."""
    library().clipq_set_threads(torch.get_num_threads())
