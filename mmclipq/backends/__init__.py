"""Executors of an ``Int8Graph``, found by name."""

from . import cpu, cuda, onnxruntime, openvino, reference, simulated  # noqa: F401  (registered here)
from .base import BACKENDS, Backend, build_backend

__all__ = ['BACKENDS', 'Backend', 'build_backend']
