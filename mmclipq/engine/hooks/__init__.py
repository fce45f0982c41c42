from .clipq_hook import ClipQHook
from .int8_export_hook import Int8ExportHook

__all__ = ['ClipQHook', 'Int8ExportHook']
