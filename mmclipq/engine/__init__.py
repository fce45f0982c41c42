"""Hooks and the runner that connect mmclipq to MMEngine."""

from .hooks import ClipQHook, Int8ExportHook, ResumeHook, resumable_training
from .int8_runner import Int8Runner

__all__ = ['ClipQHook', 'Int8ExportHook', 'Int8Runner', 'ResumeHook', 'resumable_training']
