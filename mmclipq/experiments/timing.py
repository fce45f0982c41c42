"""Milliseconds per image of several measurements' detectors, in turn in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from .files import DESCRIPTION, job_config
from .measuring import load
from .training import start_of

IMAGES = 24
WARM_UP = 4


def _detector(folder: Path) -> Any:
    """The detector that was measured in ``folder``."""
    job = json.loads((folder / DESCRIPTION).read_text())
    checkpoint = start_of([Path(path) for path in job['needs'].values()])
    assert checkpoint is not None  # every measurement needs a training
    return load(job_config(job['config']), job['content'], folder, checkpoint)


@torch.no_grad()
def time_rows(cfg: Config, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Median milliseconds of ``test_step`` on one image, by row.

    Every image goes through all detectors before the next one, so that all meet the same machine;
    preprocessing, boxes and their suppression count.

    Args:
        cfg: Its test set gives the images.
        folders: Of the measurements, by row.
    """
    init_default_scope('mmdet')
    loader = Runner.build_dataloader({**cfg.test_dataloader, 'batch_size': 1}, seed=0)
    detectors = {name: _detector(folder) for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for index, batch in zip(range(IMAGES + WARM_UP), loader, strict=False):
        for name, detector in detectors.items():
            begin = time.perf_counter()
            detector.test_step(batch)
            if index >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - begin))
    return {
        'milliseconds': {name: sorted(found)[len(found) // 2] for name, found in times.items()},
        'threads': torch.get_num_threads(),
        'images': IMAGES,
    }
