"""Outcomes as one table, and as a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ...lowering.patterns import MOVED
from .outcome import Outcome

_COLUMNS = (
    'config',
    'size',
    'weights int8',
    'operations int8',
    'float steps',
    'training step',
    'codes',
    'dB',
    'float ms',
    'int8 ms',
    'times faster',
    'failed at',
)

_INTRODUCTION = """\
Each detector is a config of mmdet with fresh weights: initialised as for a training, batch norms
with random affine maps and the statistics of the images, no checkpoint. Images are drawn, {images}
to calibrate on and half as many others to predict on. So this shows what works and how exactly, not
accuracy: an untrained network amplifies errors, those of int8 as small ones of the image, the more
the deeper it is. SSD heads get the attribute for lack of which mmdet 3.3 fails in `predict`.
"""

_MEANING = """\
* **size**: height and width of the images, {size} unless anchors are made for another size or the
  coarsest level would be smaller than its kernel.
* **weights int8**, **operations int8**: share of the integer graphs in the weights of all layers
  that the int8 detector runs, and in its multiply-adds. Products of activations, as in attention,
  count as float.
* **float steps**: how many steps and modules stay in float, without those that move values and
  compute nothing; the reasons stand below.
* **training step**: largest relative difference of any loss and any gradient between a step of the
  stock detector and the step after `prepare_model` with ranges that clip nothing.
* **codes**: every int8 tensor of a prediction in the backend {backend} against {against}, and what
  leaves as float32.
* **dB**: power of the raw outputs of all heads over that of their error against float, each tensor
  relative to its variance. Both detectors go on with the same regions and queries.
* **ms**: processor time of a prediction on one image with {threads} thread(s), boxes included; the
  least of {rounds}, float and int8 in turn. Images are small, so this is a hint and no benchmark.
* **failed at**: the stages that failed, with their sentences below; those called "stock" fail
  without mmclipq, too, as where an operation of mmcv has no implementation for the CPU.
"""


def _share(pair: tuple[int, int] | None) -> str:
    return '' if pair is None else f'{pair[0] / max(pair[1], 1):.1%}'


def _codes(outcome: Outcome) -> str:
    if outcome.codes is None:
        return ''
    total, differing = outcome.codes
    return f'{differing} of {total / 1e6:.1f} M differ' if differing else 'equal'


def _step(outcome: Outcome) -> str:
    if outcome.loss_difference is None:
        return ''
    worst = max(outcome.loss_difference, outcome.gradient_difference or 0.0)
    return f'{worst:.0e}' if worst else 'equal'


def _cells(outcome: Outcome) -> list[str]:
    left = sum(len(names) for reason, names in outcome.left.items() if reason != MOVED)
    times = [''] * 3
    if outcome.milliseconds is not None:
        stock, ours = outcome.milliseconds
        times = [f'{stock:.1f}', f'{ours:.1f}', f'{stock / ours:.2f}']
    return [
        PurePosixPath(outcome.config).stem,
        str(outcome.size or ''),
        _share(outcome.weights),
        _share(outcome.operations),
        '' if outcome.file_bytes is None else str(left),
        _step(outcome),
        _codes(outcome),
        f'{outcome.decibels["all"]:.1f}' if 'all' in outcome.decibels else '',
        *times,
        ', '.join(outcome.failures),
    ]


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def table(outcomes: Sequence[Outcome]) -> str:
    """One line of Markdown for each detector."""
    rule = f'|{"---|" * len(_COLUMNS)}'
    return '\n'.join([_row(_COLUMNS), rule, *(_row(_cells(outcome)) for outcome in outcomes)])


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many detectors went all the way, and how many failed with and without mmclipq."""
    passed = sum(outcome.passed for outcome in outcomes)
    excused = sum(outcome.excused for outcome in outcomes)
    whole = [o for o in outcomes if o.weights is not None and o.weights[0] == o.weights[1]]
    failed = len(outcomes) - passed - excused
    return (
        f'{len(outcomes)} detectors: {passed} train, convert and predict, {len(whole)} have every '
        f'weight in int8, {excused} fail without mmclipq, too, and {failed} fail.'
    )


def _short(names: Sequence[str]) -> str:
    shown = ', '.join(f'`{name}`' for name in names[:3])
    return f'{shown} and {len(names) - 3} more' if names[3:] else shown


def failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A line for each stage that failed, with its sentence."""
    for outcome in outcomes:
        for stage, reason in outcome.failures.items():
            yield f'{PurePosixPath(outcome.config).stem}: {stage}: {reason}'


_SUBJECT = re.compile(r'^[\w.#]+(?: \((\w+)\))?(?:: | (?=is read by |follows no ))')


def _without_subject(reason: str) -> str:
    """``reason`` for any step: the name that it begins with is among the names beside it."""
    return _SUBJECT.sub(lambda found: f'{found[1]}: ' if found[1] else '', reason)


def _left(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.left:
            yield f'* {PurePosixPath(outcome.config).stem}'
        grouped: dict[str, list[str]] = {}
        for reason, names in outcome.left.items():
            grouped.setdefault(_without_subject(reason), []).extend(names)
        for reason, names in sorted(grouped.items(), key=lambda item: -len(item[1])):
            yield f'  * {len(names)}: {reason} ({_short(names)})'


def page(outcomes: Sequence[Outcome], command: str, about: Mapping[str, Any]) -> str:
    """The documentation's page on detectors.

    Args:
        outcomes: Of all detectors that were tried.
        command: What gave them.
        about: From :func:`~mmclipq.evaluation.coverage.run.made_with`.
    """
    settings = about['settings']
    versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
    ran = next((outcome for outcome in outcomes if outcome.backend), Outcome(''))
    meaning = _MEANING.format(**settings, backend=ran.backend, against=ran.against)
    lines = [
        '# Detectors',
        '',
        f'Made by `{command}` with {versions} on {about["machine"]}.',
        '',
        _INTRODUCTION.format(**settings),
        summary(outcomes),
        '',
        meaning,
        table(outcomes),
        '',
    ]
    if failed := list(failures(outcomes)):
        lines += ['## What failed', '', *(f'* {line}' for line in failed), '']
    if left := list(_left(outcomes)):
        lines += ['## What stays in float', '', *left, '']
    return '\n'.join(lines)
