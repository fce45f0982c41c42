"""Tries detectors through every step: training, conversion, prediction, exactness, error, time."""

from .families import FAMILIES, QUICK
from .outcome import Outcome, Settings
from .report import page, summary, table
from .run import cover

__all__ = ['FAMILIES', 'QUICK', 'Outcome', 'Settings', 'cover', 'page', 'summary', 'table']
