"""Hooks and the runner that connect mmclipq to MMEngine."""

from .hooks import ClipQHook, Int8ExportHook
from .int8_runner import Int8Runner

__all__ = ['ClipQHook', 'Int8ExportHook', 'Int8Runner']
