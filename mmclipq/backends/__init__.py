"""Executors of an ``Int8Graph``, found by name."""

from . import cpu, reference, simulated  # noqa: F401  (each registers itself)
from .base import BACKENDS, Backend, build_backend

__all__ = ['BACKENDS', 'Backend', 'build_backend']
