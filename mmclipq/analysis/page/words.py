"""How figures are written on the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from ...evaluation.interval import Difference
from ..result import Analysis, LayerReport

NOTHING = '–'
CLIPPED = 0.005
"""Share of clipped values from which on a remark names it."""
MOST_NAMES = 8


def signed(value: float, places: int = 3) -> str:
    """With its sign, a true minus."""
    return f'{value:+.{places}f}'.replace('-', '−') if math.isfinite(value) else NOTHING


def number(value: float, places: int = 3) -> str:
    return f'{value:.{places}f}'.replace('-', '−') if math.isfinite(value) else NOTHING


def whole(value: int) -> str:
    """An integer with a true minus."""
    return str(value).replace('-', '−')


def decibels(value: float) -> str:
    """To a tenth; infinity for what is exact."""
    if math.isinf(value):
        return '∞' if value > 0 else '−∞'
    return number(value, 1)


def percent(share: float) -> str:
    """Of a share from 0 to 1; what is little but not nothing does not become 0."""
    if math.isnan(share):
        return NOTHING
    if share == 0:
        return '0'
    if share < 1e-4:
        return '<0.01'
    return f'{100 * share:.2f}' if share < 0.1 else f'{100 * share:.1f}'


def size(count: float) -> str:
    """Bytes in KiB or MiB."""
    return f'{count / 2**20:.2f} MiB' if count >= 2**20 else f'{count / 2**10:.1f} KiB'


def milliseconds(value: float) -> str:
    return number(value, 1 if value >= 10 else 2 if value >= 1 else 3)


def interval(difference: Difference) -> str:
    return f'{signed(difference.low)} to {signed(difference.high)}'


def verdict(difference: Difference) -> str:
    """One sentence on the difference of AP."""
    ends = f'95 % interval {interval(difference)}'
    if not difference.visible:
        return f'{difference.verdict[0].upper()}{difference.verdict[1:]} ({ends}).'
    return f'int8 is {difference.verdict} by {number(abs(difference.difference))} AP ({ends}).'


def exponents(layer: LayerReport) -> str:
    """Range of its output channels' weights."""
    least, most = layer.weight_exponents
    return whole(least) if least == most else f'{whole(least)} … {whole(most)}'


def remark(layer: LayerReport, layers: Sequence[LayerReport]) -> str:
    """What stands out in a layer's figures."""
    found = []
    if layer.clipped_inputs >= CLIPPED:
        found.append(f'{percent(layer.clipped_inputs)} % of its inputs are clipped')
    if layer.clipped_weights >= CLIPPED:
        found.append(f'{percent(layer.clipped_weights)} % of its weights are clipped')
    known = [other.output_db for other in layers if math.isfinite(other.output_db)]
    if known and math.isfinite(layer.output_db):
        middle = statistics.median(known)
        found.append(f'output {decibels(layer.output_db)} dB, the median layer {decibels(middle)}')
    return '; '.join(found)


def breakable(name: str) -> Markup:
    """A dotted name that may go on in the next line behind a dot."""
    return Markup('.<wbr>').join(name.split('.'))


def grouped(left: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """Reasons to stay in float, with names in words and their number, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left.items():
        reasons.setdefault(reason, []).append(name)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return [(reason, listed(names), len(names)) for reason, names in ordered]


def listed(names: Iterable[str]) -> str:
    """Names, some of them if they are many."""
    names = list(names)
    more = len(names) - MOST_NAMES
    return ', '.join(names[:MOST_NAMES]) + (f' and {more} more' if more > 0 else '')


def named(analysis: Analysis, kind: str) -> list[Difference]:
    """Rows of the table of AP: ``'all'`` of them but classes, or ``'classes'``."""
    of_class = kind == 'classes'
    return [d for d in analysis.differences if d.name.startswith('AP of ') == of_class]


FILTERS = {
    function.__name__: function
    for function in (
        breakable,
        signed, number, whole, decibels, percent, size, milliseconds, interval, verdict, exponents,
    )
}  # fmt: skip
