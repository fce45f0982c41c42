"""Markdown of what a table's jobs found, with the paper's numbers below each line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from .definitions import METRICS
from .summary import Comparison, Number, RowSummary, Summary

NOTHING = '–'


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [_line(head), _line(['---'] * len(head)), *map(_line, lines)]


def number(found: Number | None, digits: int = 4, scale: float = 1) -> str:
    """Mean and spread, the spread where there are seeds for one."""
    if found is None or math.isnan(found.mean):
        return NOTHING
    text = f'{scale * found.mean:.{digits}f}'
    return text if math.isnan(found.spread) else f'{text} ± {scale * found.spread:.{digits}f}'


def _metrics(summary: Summary) -> list[str]:
    lines: list[list[str]] = []
    for row in summary.rows:
        lines.append([row.name, *(number(row.numbers.get(name)) for name in METRICS)])
        if row.paper is not None:
            lines.append(['*the paper, VOC*', *(f'*{value:.4f}*' for value in row.paper)])
    return _table(['', *METRICS], lines)


def _rivals(summary: Summary) -> list[str]:
    head = ['', 'AP', 'AP50', 'MB', 'ratio', 'ms per image', 'executed in']
    whole = summary.rows[0].numbers.get('bytes')
    lines: list[list[str]] = []
    for row in summary.rows:
        size = row.numbers.get('bytes')
        known = size is not None and whole is not None
        lines.append([
            row.name,
            number(row.numbers.get('AP')),
            number(row.numbers.get('AP50')),
            f'{size.mean / 1e6:.2f}' if size is not None else NOTHING,
            f'{size.mean / whole.mean:.2%}' if known and size and whole else NOTHING,
            number(row.numbers.get('milliseconds'), 1),
            row.executed or NOTHING,
        ])  # fmt: skip
        if row.paper is not None:
            ap50, size_paper, ratio, ms = row.paper
            name = f'*the paper, {row.paper_name or "VOC"}*'
            paper = [name, '', f'*{ap50:.4f}*', f'*{size_paper}*', f'*{ratio:.2%}*', f'*{ms}*', '']
            lines.append(paper)
    return _table(head, lines)


def _datasets(summary: Summary) -> list[str]:
    data, extra = summary.dataset, summary.table.extra
    cells = [number(row.numbers.get(data.headline), 2, 100) for row in summary.rows]
    lines = [[f'{data.name}, {data.headline}', *cells]]
    for name, values in extra['paper_lines'].items():
        shown = [NOTHING if value is None else f'*{value:.2f}*' for value in values]
        lines.append([f'*the paper, {name}*', *shown])
    return _table(['%', *(row.name for row in summary.rows)], lines)


def _curves(summary: Summary) -> list[str]:
    names = list(summary.curves)
    epochs = sorted({epoch for curve in summary.curves.values() for epoch in curve})
    lines = []
    for epoch in epochs:
        values = [list(summary.curves[name].get(epoch, {}).values()) for name in names]
        lines.append([str(epoch), *(number(Number.of(v) if v else None) for v in values)])
    return _table(['epoch', *names], lines)


def _histogram(summary: Summary) -> list[str]:
    bounds, paper = summary.table.extra['bounds'], summary.table.extra['paper_shares']
    row: RowSummary = summary.rows[0]
    lines = []
    below = 0.0
    for bound, share in zip(bounds, paper, strict=True):
        ours = row.numbers.get(f'within {bound}')
        lines.append([
            f'{below:g} to {bound:g}',
            number(ours, 2, 100),
            NOTHING if share is None else f'*{100 * share:.2f}*',
        ])  # fmt: skip
        below = bound
    lines.append([f'above {below:g}', number(row.numbers.get('beyond'), 2, 100), NOTHING])
    return _table(['absolute weight', 'share, %', 'the paper, %'], lines)


_KINDS: dict[str, Callable[[Summary], list[str]]] = {
    'metrics': _metrics,
    'rivals': _rivals,
    'datasets': _datasets,
    'curves': _curves,
    'histogram': _histogram,
}


def _comparisons(found: Sequence[Comparison]) -> list[str]:
    head = ['difference of AP', 'mean', 'spread over seeds', '95 % interval over images', '']
    lines = []
    for c in found:
        d = c.difference
        spread = NOTHING if math.isnan(c.spread) else f'{c.spread:.4f}'
        interval = f'{d.low:+.4f} to {d.high:+.4f}'
        lines.append(
            [f'{c.second} − {c.first}', f'{d.difference:+.4f}', spread, interval, d.verdict]
        )
    return _table(head, lines)


def markdown(summary: Summary) -> str:
    """The table, below it the differences; rows that were not done have dashes."""
    done = max((len(row.by_seed) for row in summary.rows), default=0)
    if summary.table.kind == 'curves':
        done = max((len(v) for c in summary.curves.values() for v in c.values()), default=0)
    count = f'{len(summary.seeds)} seeds' if len(summary.seeds) > 1 else 'one seed'
    if summary.table.kind == 'histogram':
        count = f'seed {summary.seeds[0]}'
    elif done < len(summary.seeds):
        count += f', at most {done} of them done'
    title = summary.table.title
    lines = [f'**{title}.** {summary.detector} on {summary.dataset.title}; {count}.', '']
    lines += _KINDS[summary.table.kind](summary)
    if summary.comparisons:
        lines += ['', *_comparisons(summary.comparisons)]
    return '\n'.join(lines) + '\n'


def replaced(text: str, name: str, data: str, made: str) -> str | None:
    """``text`` with ``made`` between the markers of a table, None if it has none.

    The markers are ``<!-- paper: table4 digits -->`` and ``<!-- paper: end -->``.
    """
    begin, end = f'<!-- paper: {name} {data} -->\n', '<!-- paper: end -->'
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    return f'{head}{found}{made}{closed}{tail}' if found and closed else None
