"""Tries detectors through every step: training, conversion, prediction, exactness, error, time."""

from .families import FAMILIES, QUICK
from .outcome import Outcome, Settings
from .report import failures, page, summary, table
from .run import cover, made_with

__all__ = [
    'FAMILIES',
    'QUICK',
    'Outcome',
    'Settings',
    'cover',
    'failures',
    'made_with',
    'page',
    'summary',
    'table',
]
