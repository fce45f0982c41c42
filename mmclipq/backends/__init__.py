"""Executors of an ``Int8Graph``, found by name."""

# Imported, they are registered.
from . import cpu, cuda, int_mm, onnxruntime, openvino, reference, simulated, table  # noqa: F401
from .base import BACKENDS, Backend, build_backend

__all__ = ['BACKENDS', 'Backend', 'build_backend']
