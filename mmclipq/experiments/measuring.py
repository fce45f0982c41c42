"""One measurement: accuracy on the test set, bytes, and which detection found which object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..apis import build_detector, load_float_checkpoint, load_int8
from ..apis.quantize_checkpoint import export_checkpoint, load_for_quantization
from ..evaluation.compare import weight_bytes
from ..evaluation.evaluate import evaluate
from .rivals import RIVALS
from .stored import save_matches
from .training import start_of

MATCHES = 'matches.npz'
INT8 = 'int8.clipq'
WAY = {'float': 'float32', 'int8': 'int8, mmclipq'}


def make(cfg: Config, content: Mapping[str, Any], folder: Path, checkpoint: Path) -> int:
    """Make in ``folder`` what :func:`load` reads; returns its bytes.

    Args:
        cfg: The detector's config.
        content: ``form`` and ``rival`` of the job.
        folder: Where files go.
        checkpoint: Of the training.
    """
    if content['rival'] is not None:
        return RIVALS[content['rival']].save(cfg, checkpoint, folder)
    if content['form'] == 'int8':
        export_checkpoint(cfg, checkpoint, folder / INT8)
        return os.path.getsize(folder / INT8)
    return weight_bytes(build_detector(cfg.model))


def load(cfg: Config, content: Mapping[str, Any], folder: Path, checkpoint: Path) -> nn.Module:
    """The detector of a measurement, to be tested and timed."""
    if content['rival'] is not None:
        return RIVALS[content['rival']].load(cfg, checkpoint, folder)
    if content['form'] == 'int8':
        return load_int8(folder / INT8)
    if cfg.get('clipq') is not None:
        return load_for_quantization(cfg, checkpoint)[0]
    detector = build_detector(cfg.model)
    load_float_checkpoint(detector, checkpoint)
    return detector.eval()


def measure(
    cfg: Config, content: Mapping[str, Any], folder: Path, training: Path
) -> dict[str, Any]:
    """Convert if need be and test; writes the matches beside.

    Args:
        cfg: The config, with the test set.
        content: ``form``: ``'float'`` or ``'int8'``; ``rival``: an adapter's name or None.
        folder: Where files go.
        training: Folder of the training.
    """
    checkpoint = start_of([training])
    assert checkpoint is not None  # every measurement needs a training
    size = make(cfg, content, folder, checkpoint)
    detector = load(cfg, content, folder, checkpoint)
    result = evaluate(detector, cfg, 'test', matched=True)
    if result.matches is not None:
        save_matches(result.matches, folder / MATCHES)
    rival = content['rival']
    return {
        'metrics': {key: float(value) for key, value in result.metrics.items()},
        'bytes': size,
        'images': result.images,
        'milliseconds': result.milliseconds,
        'executed': WAY[content['form']] if rival is None else RIVALS[rival].executed,
    }
