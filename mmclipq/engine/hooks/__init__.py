from .clipq_hook import ClipQHook
from .int8_export_hook import Int8ExportHook
from .prune_hook import MagnitudePruningHook
from .resume_hook import ResumeHook, resumable_training
from .whole_checkpoint_hook import WholeCheckpointHook

__all__ = [
    'ClipQHook',
    'Int8ExportHook',
    'MagnitudePruningHook',
    'ResumeHook',
    'WholeCheckpointHook',
    'resumable_training',
]
