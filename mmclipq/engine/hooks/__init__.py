from .clipq_hook import ClipQHook
from .int8_export_hook import Int8ExportHook
from .resume_hook import ResumeHook, resumable_training
from .whole_checkpoint_hook import WholeCheckpointHook

__all__ = ['ClipQHook', 'Int8ExportHook', 'ResumeHook', 'WholeCheckpointHook', 'resumable_training']
