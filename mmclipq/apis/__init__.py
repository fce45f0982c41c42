"""Python entry points: quantize a detector, write and read ``.clipq`` files."""

from .quantize import (
    Quantized,
    build_detector,
    load_float_checkpoint,
    load_int8,
    quantize,
    save_int8,
)

__all__ = [
    'Quantized',
    'build_detector',
    'load_float_checkpoint',
    'load_int8',
    'quantize',
    'save_int8',
]
