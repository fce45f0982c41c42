"""Optional packages, imported on use."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from ..errors import ClipQError

EXTRA = "pip install 'mmclipq[export]'"


def missing(*names: str) -> str:
    """One sentence that says which of the packages is not installed; empty if all are."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f'found no package {absent[0]!r}, wanted it for this format; {EXTRA}' if absent else ''


def require(name: str) -> ModuleType:
    """The package ``name``.

    Raises:
        ClipQError: naming it and how to install it.
    """
    if reason := missing(name.split('.')[0]):
        raise ClipQError(reason)
    return importlib.import_module(name)
