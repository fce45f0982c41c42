"""From a checkpoint to a ``.clipq`` file whose ranges and layers were chosen by detections."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...apis.calibration_data import with_instances
from ...apis.fit_size import fit_size
from ...apis.int8_file import int8_size
from ...apis.mmdet_tools import check_out
from ...apis.quantize_checkpoint import (
    calibration_batches,
    calibration_options,
    dataset_meta,
    float_bytes,
    load_for_quantization,
    write_int8,
)
from ...apis.quantize_model import calibrate
from .budget import within_budget
from .held_out import HeldOut
from .search import search_ranges
from .state import Progress, fingerprint


def export_tuned(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    search: bool = False,
    max_drop: float | None = None,
    held_images: int = 64,
    calib_images: int | None = None,
    calib_dir: str | os.PathLike | None = None,
    calib_seed: int | None = None,
    device: str = 'cpu',
    size: float | None = None,
    compress: str = 'fast',
    **changes: Any,
) -> Iterator[Any]:
    """Write ``out`` from a checkpoint, and give reports as they come: search, budget, the file.

    What is measured is kept in ``OUT.progress`` until ``out`` is written; the same call goes on
    with it after an interruption.

    Args:
        cfg, calib_images, calib_dir, calib_seed, device, changes: As for
            :func:`mmclipq.apis.quantize_checkpoint.quantize_checkpoint`.
        checkpoint: Float checkpoint that MMEngine wrote.
        out: File to write.
        search: Whether ranges are chosen by detections.
        max_drop: AP points that may be lost on held-out images; None for any number.
        held_images: How many images are held out.
        size: Wanted bytes of the file as a share of the float32 weights, without the layers that
            ``max_drop`` leaves in float; None for codes with the least error.
        compress: As for :func:`mmclipq.apis.int8_file.save_int8`.

    Raises:
        ClipQError: for anything wrong with config, checkpoint or images, or if ``max_drop`` cannot
            be kept.
    """
    out = Path(out)
    check_out(out, '.clipq')
    options = calibration_options(cfg, **changes)
    draw = calib_images, calib_dir, calib_seed
    batches = calibration_batches(cfg, *draw)
    model, content = load_for_quantization(cfg, checkpoint)
    model.to(device)
    others = HeldOut(model, [])
    if max_drop is not None:  # said before minutes are spent
        others = HeldOut(model, calibration_batches(with_instances(cfg), *draw, held=held_images))
        others.check('--max-drop')
    session = calibrate(model, batches, cfg.get('clipq'))
    mark = fingerprint(
        model, options, search, size, compress, held_images, [str(part) for part in draw], cfg.model
    )
    progress = Progress(out.with_name(f'{out.name}.progress'), mark)
    if progress.resumed:
        yield f'{progress.path}: going on with {progress.resumed} results'
    if search:
        yield search_ranges(session, options, progress)
        options = replace(options, method='output')
    else:
        session.measure(options)
    meta = dataset_meta(content)
    if size is not None:
        wanted = size * float_bytes(model)
        yield fit_size(
            session, options, wanted, lambda q: int8_size(model, q, cfg, meta, compress), progress
        )
    if max_drop is None:
        quantized = session.finish(options)
    else:
        budget = within_budget(session, options, others, max_drop, progress)
        yield budget
        quantized = budget.quantized
    yield write_int8(out, model, quantized, cfg, meta, compress)
    progress.done()
