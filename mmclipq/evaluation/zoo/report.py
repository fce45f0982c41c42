"""A zoo as one table, and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_COLUMNS = (
    'detector', 'AP float', 'AP int8', 'difference, 95 % interval', 'MiB float', 'MiB int8',
    'ratio', 'ms float', 'ms int8', 'weights int8', 'steps in float',
)  # fmt: skip

_MEANING = """\
* **AP** is that of boxes by the config's own evaluator; the interval is that of int8 less float
  over other test images of the same kind. All other metrics stand in `zoo.json`.
* **MiB float** are the float32 parameters, **MiB int8** is the file.
* **ms** is the median for one image with {threads} thread(s), preprocessing and boxes included,
  both detectors in turn on the same images.
* **weights int8** is the share of the weights that a prediction multiplies with.
"""


def _points(value: float) -> str:
    return 'none' if math.isnan(value) else f'{value:.3f}'


def _difference(row: Mapping[str, Any]) -> str:
    text = f'{row["ap_int8"] - row["ap_float"]:+.3f}'
    if math.isnan(row['low']):
        return text
    return f'{text}, {row["low"]:+.3f} to {row["high"]:+.3f}'


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    if 'failure' in row:
        return [name, 'failed', *[''] * (len(_COLUMNS) - 2)]
    own, every = row['weights']
    return [
        name, _points(row['ap_float']), _points(row['ap_int8']), _difference(row),
        f'{row["float_bytes"] / 2**20:.2f}', f'{row["int8_bytes"] / 2**20:.2f}',
        f'{row["int8_bytes"] / row["float_bytes"]:.2%}',
        f'{row["float_ms"]:.1f}', f'{row["int8_ms"]:.1f}',
        f'{own / max(every, 1):.1%}', str(row['left']),
    ]  # fmt: skip


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f'| {" | ".join(cells)} |'


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line of Markdown for each detector, and a line for each that failed behind them."""
    lines = [_line(_COLUMNS), f'|{"---|" * len(_COLUMNS)}']
    lines += [_line(_cells(name, row)) for name, row in rows.items()]
    failed = {name: row['failure'] for name, row in rows.items() if 'failure' in row}
    lines += ['', *(f'{name}: {reason}' for name, reason in failed.items())] if failed else []
    return '\n'.join(lines)


def _files(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [_line(('file', 'SHA-256', 'from')), '|---|---|---|']
    for name, row in rows.items():
        if 'failure' not in row:
            lines.append(
                _line(
                    (f'[{row["file"]}]({name}/{row["file"]})', f'`{row["sha256"]}`',
                     f'`{row["checkpoint"]}`, `{row["checkpoint_sha256"]}`')
                )
            )  # fmt: skip
    return '\n'.join(lines)


def page(rows: Mapping[str, Mapping[str, Any]], command: str, about: Mapping[str, Any]) -> str:
    """The zoo's ``README.md``.

    Args:
        rows: From :func:`~mmclipq.evaluation.zoo.run.fill`.
        command: What gave them.
        about: ``versions`` and the settings' ``threads``.
    """
    versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
    return '\n'.join(
        ['# Int8 zoo', '', f'Made by `{command}` with {versions}.', '', table(rows), '',
         _MEANING.format(threads=about['threads']), '## Files', '', _files(rows), '']
    )  # fmt: skip
