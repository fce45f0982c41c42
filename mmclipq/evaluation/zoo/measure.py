"""One detector of a zoo, from its float checkpoint to its int8 file and its figures."""

from __future__ import annotations

import hashlib
import math
import urllib.error
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from ..._compat import as_detector
from ...apis import build_detector, load_float_checkpoint, load_int8
from ...apis.quantize_checkpoint import export_checkpoint
from ...apis.quantize_model import preprocessed
from ...errors import ClipQError
from ...graph.artifact import load_artifact
from ..compare import weight_bytes
from ..coverage.measure import Work, int8_share
from ..evaluate import evaluate
from ..in_turn import milliseconds_in_turn
from ..interval import ap_differences
from .entries import Entry, is_address, with_data_root


@dataclass
class Row:
    """Figures of one detector; NaN where its evaluator has none.

    Attributes:
        checkpoint: Name of the file, with its SHA-256 in ``checkpoint_sha256``.
        images: Number of test images.
        ap_float, ap_int8: AP of boxes.
        low, high: 95 % interval of the second less the first.
        metrics_float, metrics_int8: All that the evaluator gave.
        float_bytes: Of the float32 parameters.
        int8_bytes: Of the int8 file ``file``, whose SHA-256 is ``sha256``.
        float_ms, int8_ms: Milliseconds per image, boxes included, in turn.
        weights: Number of weights in int8, and of all that a prediction reads.
        left: Number of steps in float.
    """

    checkpoint: str
    checkpoint_sha256: str
    images: int
    ap_float: float
    ap_int8: float
    low: float
    high: float
    metrics_float: dict[str, float]
    metrics_int8: dict[str, float]
    float_bytes: int
    int8_bytes: int
    file: str
    sha256: str
    float_ms: float
    int8_ms: float
    weights: tuple[int, int]
    left: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def fetched(checkpoint: str, folder: Path) -> Path:
    """The checkpoint's file; what an address names is kept in ``folder``.

    A name that ends with a part of its SHA-256, as mmdet's do, is checked against it.

    Raises:
        ClipQError: if it cannot be had.
    """
    if not is_address(checkpoint):
        return Path(checkpoint)
    path = folder / checkpoint.rsplit('/', 1)[-1]
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        end = path.stem.rsplit('-', 1)[-1]
        known = end if len(end) == 8 and set(end) <= set('0123456789abcdef') else None
        try:
            torch.hub.download_url_to_file(checkpoint, str(path), hash_prefix=known)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise ClipQError(f'{checkpoint}: found no such download ({error})') from None
    return path


def _weights(detector: nn.Module, file: Path, cfg: Config) -> tuple[int, int]:
    """Number of weights in int8, and of all that a prediction reads."""
    loader = Runner.build_dataloader({**cfg.test_dataloader, 'batch_size': 1}, seed=0)
    images, samples = next(preprocessed(detector, loader))
    with torch.no_grad(), Work(detector) as left:
        as_detector(detector).predict(images, samples)
    return int8_share(load_artifact(file).graphs, left)


def measure(
    entry: Entry, folder: Path, downloads: Path, data_root: str | None, calib_images: int | None
) -> Row:
    """Quantize, test and time one detector.

    Args:
        entry: Which.
        folder: For its int8 file.
        downloads: For its checkpoint, if that is an address.
        data_root: Where its data set lies, if not where its config says.
        calib_images: How many images calibrate.

    Raises:
        ClipQError: for anything wrong with config, checkpoint or images.
    """
    cfg = Config.fromfile(entry.config)
    if entry.options:
        cfg.merge_from_dict(dict(entry.options))
    if data_root is not None:
        cfg = with_data_root(cfg, data_root)
    checkpoint = fetched(entry.checkpoint, downloads)
    detector: nn.Module = build_detector(cfg.model)
    load_float_checkpoint(detector, checkpoint)
    file = folder / f'{entry.name}.clipq'
    summary = export_checkpoint(cfg, checkpoint, file, calib_images=calib_images)
    int8 = load_int8(file)
    found = {
        name: evaluate(model, cfg, name, matched=True)
        for name, model in (('float', detector), ('int8', int8))
    }
    low = high = math.nan
    if all(result.matches is not None for result in found.values()):
        first = ap_differences(found['float'].matched(), found['int8'].matched())[0]
        low, high = first.low, first.high
    times = milliseconds_in_turn(cfg, {'float': detector, 'int8': int8})
    return Row(
        checkpoint.name, sha256(checkpoint), found['int8'].images,
        found['float'].ap, found['int8'].ap, low, high,
        dict(found['float'].metrics), dict(found['int8'].metrics),
        weight_bytes(detector), summary.size, file.name, sha256(file),
        times['float'], times['int8'], _weights(int8, file, cfg), len(summary.left),
    )  # fmt: skip
