"""Executors of an ``Int8Graph``, found by name."""

# Imported, they are registered.
from . import int_mm, reference, simulated  # noqa: F401
from .base import BACKENDS, Backend, build_backend
from .compiled import cpu, cuda  # noqa: F401
from .runtimes import onnxruntime, openvino, table  # noqa: F401

__all__ = ['BACKENDS', 'Backend', 'build_backend']
