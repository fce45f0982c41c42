"""AP of one checkpoint by several calibrations, over several draws of calibration images."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from torch import nn

from ...apis.detectors import build_detector, load_float_checkpoint
from ...apis.quantize_checkpoint import calibration_batches, load_for_quantization
from ...apis.quantize_model import CalibrationSession, calibrate
from ...calibration.options import METHODS, CalibrationOptions
from ...errors import ClipQError
from ..evaluate import evaluate
from ..interval import Difference, ap_differences
from .budget import int8_detector
from .search import search_ranges

PAPER = {'input_range': 8.0, 'weight_range': 0.125}
"""The paper's fixed ranges for YOLOv3."""
WAYS = ('paper', 'search', 'weights', 'inputs', *METHODS)
"""``weights`` and ``inputs`` round these alone, in float32, with the ranges of ``mse``: no better
rounding of them can gain more than they lose."""
BIAS = '+bias'


@dataclass(frozen=True)
class Row:
    """One int8 detector against float on the test set.

    Attributes:
        way: How it was calibrated.
        draw: Number of the draw of calibration images.
        difference: Of AP.
    """

    way: str
    draw: int
    difference: Difference


Other = Callable[[Config, str], nn.Module]
"""From a config, whose ``clipq.int8`` section tells the calibration images, and a float checkpoint
to a detector of another library, with mmdet's ``test_step``."""


def check_way(way: str, others: Collection[str] = ()) -> None:
    """Return if ``way`` is one of :data:`WAYS`, with :data:`BIAS` behind it or not, or of others.

    Raises:
        ClipQError: if it is not.
    """
    if way.removesuffix(BIAS) not in WAYS and way not in others:
        wanted = f'{", ".join(WAYS)}, {BIAS} behind it or not'
        wanted += f', or of {", ".join(others)}' if others else ''
        raise ClipQError(f'--ways: found {way!r}, wanted some of {wanted}')


@contextmanager
def _detector(session: CalibrationSession, way: str) -> Iterator[nn.Module]:
    """The detector to test, inside."""
    name = way.removesuffix(BIAS)
    alone = name in ('weights', 'inputs')
    method = {'paper': 'max', 'search': 'output'}.get(name, 'mse' if alone else name)
    options = CalibrationOptions(
        method, offsets=name != 'paper', bias_correction=way.endswith(BIAS)
    )
    if name == 'search':
        print(search_ranges(session, options))
    else:
        session.measure(options)
    if not alone:
        yield int8_detector(session, session.finish(options))
        return
    session.choose(options)
    with ExitStack() as stack:
        for part in session.parts.values():
            simulation = part.simulation()
            simulation.only = set(simulation.layers)
            simulation.inputs, simulation.weights = name == 'inputs', name == 'weights'
            stack.enter_context(part.executing(simulation))
        stack.enter_context(session.computing())
        yield session.model


def compare_calibrations(
    cfg: Config,
    checkpoint: str | os.PathLike,
    ways: Sequence[str],
    draws: int = 1,
    calib_images: int | None = None,
    others: Mapping[str, Other] | None = None,
) -> Iterator[Row]:
    """Test a checkpoint behind integers, calibrated in several ways, against itself in float.

    Args:
        cfg: The detector's config with its test set.
        checkpoint: Float checkpoint.
        ways: See :func:`check_way`.
        draws: How many draws of calibration images.
        calib_images: Number of images of a draw.
        others: Ways of other libraries, by name.

    Raises:
        ClipQError: for anything wrong with config, checkpoint, ways or images.
    """
    others = others or {}
    for way in ways:
        check_way(way, others)
    detector = build_detector(cfg.model)
    load_float_checkpoint(detector, checkpoint)
    wanted = evaluate(detector, cfg, 'float', matched=True).matched()
    for draw in range(draws):
        sessions: dict[bool, CalibrationSession] = {}
        for way in ways:
            paper = way.startswith('paper')
            drawn = _with_draw(cfg, PAPER if paper else {}, draw, calib_images)
            with ExitStack() as stack:
                if way in others:
                    int8 = others[way](drawn, os.fspath(checkpoint))
                else:
                    if paper not in sessions:
                        sessions[paper] = _session(drawn, checkpoint)
                    int8 = stack.enter_context(_detector(sessions[paper], way))
                found = evaluate(int8, cfg, way, matched=True).matched()
            yield Row(way, draw, ap_differences(wanted, found)[0])


def _with_draw(
    cfg: Config, changes: Mapping[str, Any], draw: int, calib_images: int | None
) -> Config:
    """The config with its ``clipq`` section changed, and a draw of calibration images in it."""
    cfg = copy.deepcopy(cfg)
    section = dict(cfg.get('clipq') or {})
    images = {'calib_seed': draw}
    if calib_images is not None:
        images['calib_images'] = calib_images
    cfg.clipq = {**section, **changes, 'int8': {**(section.get('int8') or {}), **images}}
    return cfg


def _session(cfg: Config, checkpoint: str | os.PathLike) -> CalibrationSession:
    model, _ = load_for_quantization(cfg, checkpoint)
    return calibrate(model, calibration_batches(cfg), cfg.clipq)


def table(rows: Sequence[Row]) -> str:
    """Mean over the draws in Markdown, in points of AP; the interval is that of the first draw."""
    lines = [
        '| calibration | AP | difference in points, each draw | mean | 95 % interval, first draw |',
        '|---|---|---|---|---|',
    ]
    if rows:
        lines.append(f'| float | {100 * rows[0].difference.first:.2f} | | | |')
    for way in dict.fromkeys(row.way for row in rows):
        found = [row.difference for row in rows if row.way == way]
        each = ', '.join(f'{100 * d.difference:+.2f}' for d in found)
        mean = 100 * sum(d.difference for d in found) / len(found)
        lines.append(
            f'| {way} | {100 * found[0].second:.2f} | {each} | {mean:+.2f} '
            f'| {100 * found[0].low:+.2f} to {100 * found[0].high:+.2f} |'
        )
    return '\n'.join(lines)
