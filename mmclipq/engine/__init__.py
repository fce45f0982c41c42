"""Hooks and the runners that connect mmclipq to MMEngine."""

from .cpu_runner import CpuRunner
from .hooks import ClipQHook, Int8ExportHook, ResumeHook, resumable_training
from .int8_runner import Int8Runner

__all__ = [
    'ClipQHook',
    'CpuRunner',
    'Int8ExportHook',
    'Int8Runner',
    'ResumeHook',
    'resumable_training',
]
