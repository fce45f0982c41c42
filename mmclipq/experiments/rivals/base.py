"""What an adapter to a rival's library does."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from torch import nn

from ...errors import ClipQError


class Rival:
    """Another way to an int8 detector, by a library of others.

    Attributes:
        packages: What to pip install, by the name that is imported.
        executed: How its detector runs, for the table: in int8, and by what, or simulated.
        trains: Whether it changes the detector before the fine-tuning; else it converts the float
            control.
    """

    packages: Mapping[str, str] = {}
    executed = ''
    trains = False

    @property
    def missing(self) -> str:
        """What to install; empty if all is there."""
        names = [p for m, p in self.packages.items() if importlib.util.find_spec(m) is None]
        return f'pip install {" ".join(names)}' if names else ''

    def check(self) -> None:
        """Return if all is installed.

        Raises:
            ClipQError: if something is missing.
        """
        if self.missing:
            raise ClipQError(f'{type(self).__name__}: found not all it needs; {self.missing}')

    def prepare(self, detector: nn.Module, cfg: Config, start: Path) -> None:
        """Load ``start`` into the detector and change it, in place, before it trains."""
        raise ClipQError(f'{type(self).__name__}: found no training, wanted a conversion')

    def save(self, cfg: Config, checkpoint: Path, folder: Path) -> int:
        """Write the int8 files into ``folder``; returns their bytes.

        Calibration images are those of the config's ``clipq.int8`` section.
        """
        raise NotImplementedError

    def load(self, cfg: Config, checkpoint: Path, folder: Path) -> nn.Module:
        """The detector of the files, in evaluation mode, with mmdet's ``test_step``."""
        raise NotImplementedError

    def quantized(self, cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
        """The detector of a checkpoint, whose files are gone when this returns."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(cfg, Path(checkpoint), Path(folder))
            return self.load(cfg, Path(checkpoint), Path(folder))
