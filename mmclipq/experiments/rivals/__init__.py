"""Adapters to the libraries that Table 8 compares with, by name."""

from __future__ import annotations

from .base import Rival

RIVALS: dict[str, Rival] = {}

__all__ = ['RIVALS', 'Rival']
