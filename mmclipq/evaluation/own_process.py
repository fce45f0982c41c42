"""Detectors are tried and measured in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path


def environment_of(threads: int) -> dict[str, str]:
    """Variables of a process that runs a module of this very package.

    Args:
        threads: Of PyTorch and NumPy.
    """
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH')]
    return {
        **os.environ,
        'OMP_NUM_THREADS': str(threads),
        'PYTHONPATH': os.pathsep.join(filter(None, folders)),
    }
