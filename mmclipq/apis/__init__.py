"""Python entry points: add clipping to a config, quantize, write and read ``.clipq`` files."""

from .clipq_config import clipq_hooks, with_clipq
from .detectors import build_detector, load_float_checkpoint
from .inferencer import Int8Inferencer
from .int8_file import load_int8, save_int8
from .quantize import Quantized, quantize

__all__ = [
    'Int8Inferencer',
    'Quantized',
    'build_detector',
    'clipq_hooks',
    'load_float_checkpoint',
    'load_int8',
    'quantize',
    'save_int8',
    'with_clipq',
]
