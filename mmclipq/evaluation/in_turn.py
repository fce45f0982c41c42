"""Milliseconds per image of several detectors, which take turns on the images of a test set."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from .._compat import as_detector

IMAGES = 24
_WARM_UP = 4


@torch.no_grad()
def milliseconds_in_turn(cfg: Config, detectors: Mapping[str, nn.Module]) -> dict[str, float]:
    """Median milliseconds of ``test_step`` on one image, by the detector's name.

    Every image goes through all detectors before the next one, so that all meet the same machine;
    preprocessing, boxes and their suppression count.

    Args:
        cfg: Its test set gives the images, :data:`IMAGES` of them or as many as there are.
        detectors: By name.
    """
    init_default_scope('mmdet')
    loader = Runner.build_dataloader({**cfg.test_dataloader, 'batch_size': 1}, seed=0)
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for index, batch in zip(range(IMAGES + _WARM_UP), loader, strict=False):
        for name, detector in detectors.items():
            begin = time.perf_counter()
            as_detector(detector).test_step(batch)
            if index >= min(_WARM_UP, len(loader.dataset) - 1):
                times[name].append(1000 * (time.perf_counter() - begin))
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}
