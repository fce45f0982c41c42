"""Float checkpoints to int8 files, with AP, interval, size, time and checksums in one table."""

from .entries import Entry, published_checkpoint, read_list, with_data_root
from .report import page, table
from .run import Settings, fill, versions

__all__ = [
    'Entry',
    'Settings',
    'fill',
    'page',
    'published_checkpoint',
    'read_list',
    'table',
    'versions',
    'with_data_root',
]
