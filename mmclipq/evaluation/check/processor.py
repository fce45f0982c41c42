"""What the processor brings for int8."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from ...backends.base import BACKENDS, backend_class

_INSTRUCTIONS = {
    'amx_int8': 'AMX',
    'avx512_vnni': 'AVX512-VNNI',
    'avx_vnni': 'AVX-VNNI',
    'avx512f': 'AVX512',
    'avx2': 'AVX2',
}


def instructions(cpuinfo: str) -> list[str]:
    """Names of the vector instructions that matter here, the fastest first.

    Args:
        cpuinfo: Text of Linux's ``/proc/cpuinfo``.
    """
    flags = {
        flag
        for line in cpuinfo.splitlines()
        if line.partition(':')[0].strip() in ('flags', 'Features')
        for flag in line.partition(':')[2].split()
    }
    return [name for flag, name in _INSTRUCTIONS.items() if flag in flags]


def describe_processor() -> str:
    """One sentence: instructions, threads, and the backend that int8 runs on."""
    source = Path('/proc/cpuinfo')
    found = instructions(source.read_text()) if source.is_file() else []
    have = ', '.join(found) or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    name = backend_class('auto').name
    reason = BACKENDS['cpu'].unavailable('cpu')
    return (
        f'processor: {have}; {cores} cores, {torch.get_num_threads()} threads; int8 runs on the '
        f'backend {name!r}' + (f", because of 'cpu': {reason}" if reason else '')
    )
