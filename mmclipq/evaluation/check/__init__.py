"""Finds what looks like quantization loss and is none, before anything is quantized."""

from .run import CheckReport, check_checkpoint

__all__ = ['CheckReport', 'check_checkpoint']
