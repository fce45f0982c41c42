"""Milliseconds per image of several measurements' detectors, in turn in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..evaluation.in_turn import IMAGES, milliseconds_in_turn
from .files import DESCRIPTION, job_config
from .measuring import load
from .training import start_of


def _detector(folder: Path) -> Any:
    """The detector that was measured in ``folder``."""
    job = json.loads((folder / DESCRIPTION).read_text())
    checkpoint = start_of([Path(path) for path in job['needs'].values()])
    assert checkpoint is not None  # every measurement needs a training
    return load(job_config(job['config']), job['content'], folder, checkpoint)


def time_rows(cfg: Config, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Median milliseconds on one image of the test set of ``cfg``, by row.

    Args:
        cfg: Its test set gives the images.
        folders: Of the measurements, by row.
    """
    detectors = {name: _detector(folder) for name, folder in folders.items()}
    return {
        'milliseconds': milliseconds_in_turn(cfg, detectors),
        'threads': torch.get_num_threads(),
        'images': IMAGES,
    }
