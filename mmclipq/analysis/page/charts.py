"""The charts of a report, for a light or a dark page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ...evaluation.interval import Difference
from ..result import Analysis, LayerReport

SIZE = 4.2, 2.8
"""Inches at which the letters can be read on a phone and on paper."""
DOTS = 200
COLOURS = 64
"""Of a PNG, which makes it a third as large."""
MOST_BARS = 12
MOST_CLASSES = 20
HIGHEST_DB = 80.0
"""Where exact layers are drawn, whose signal to noise is infinite."""


@dataclass(frozen=True)
class Theme:
    """Colours of a chart, told apart also by those who see fewer."""

    paper: str
    ink: str
    grid: str
    first: str
    second: str
    third: str


LIGHT = Theme('#ffffff', '#1b1f24', '#d5d9de', '#0072b2', '#d55e00', '#6b7280')
DARK = Theme('#14181d', '#e6e9ec', '#3a424b', '#56b4e9', '#f0883e', '#9aa4af')


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        name: Of its file, without ending.
        text: What it shows, for those who do not see it.
        light, dark: PNG files.
    """

    name: str
    text: str
    light: bytes
    dark: bytes


def _style(theme: Theme) -> Any:
    ink = dict.fromkeys(
        ('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'axes.edgecolor'), theme.ink
    )
    return {
        **ink,
        'figure.facecolor': theme.paper,
        'axes.facecolor': theme.paper,
        'axes.grid': True,
        'axes.axisbelow': True,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.titlesize': 8,
        'grid.color': theme.grid,
        'grid.linewidth': 0.6,
        'font.family': 'DejaVu Sans',
        'font.size': 7.5,
        'legend.frameon': False,
        'legend.fontsize': 7,
    }


def draw(
    name: str, text: str, paint: Callable[[Figure, Theme], None], height: float = SIZE[1]
) -> Chart:
    """A chart in both themes.

    Args:
        name, text: As in :class:`Chart`.
        paint: Draws into an empty figure.
        height: In inches.
    """
    files = []
    for theme in (LIGHT, DARK):
        with rc_context(_style(theme)):
            figure = Figure(figsize=(SIZE[0], height), layout='constrained')
            paint(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format='png', dpi=DOTS)
        with Image.open(buffer) as image:
            flat = image.convert('RGB').quantize(COLOURS, dither=Image.Dither.NONE)
        small = io.BytesIO()
        flat.save(small, 'png', optimize=True)
        files.append(small.getvalue())
    return Chart(name, text, *files)


def charts(analysis: Analysis) -> dict[str, Chart]:
    """Every chart of the report by its name; those that would be empty are left out."""
    found = [
        _effects(analysis),
        _signals(analysis),
        _weights(analysis),
        _classes(analysis),
        _costs(analysis),
    ]
    return {chart.name: chart for chart in found if chart is not None}


def _effects(analysis: Analysis) -> Chart:
    worst = list(analysis.layers[:MOST_BARS])
    measured = [(row, layer.ap) for row, layer in enumerate(worst) if layer.ap is not None]

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        rows = np.arange(len(worst))
        axes.barh(rows, [layer.agreement_lost for layer in worst], color=theme.grid,
                  edgecolor=theme.third, linewidth=0.6, label='agreement lost')  # fmt: skip
        if measured:
            values = np.array([-ap.difference for _, ap in measured])
            ends = np.array([(-ap.high, -ap.low) for _, ap in measured]).T
            axes.errorbar(
                values, [row for row, _ in measured], xerr=np.abs(ends - values), fmt='o',
                color=theme.second, markersize=3, capsize=2, linewidth=1,
                label='AP lost, 95 % interval',
            )  # fmt: skip
        axes.set_yticks(rows, [_short(layer.name) for layer in worst], fontsize=6.5)
        axes.invert_yaxis()
        axes.axvline(0, color=theme.ink, linewidth=0.6)
        axes.grid(axis='y', visible=False)
        axes.set_xlabel('lost with this layer alone in int8')
        # Above the bars, which may reach any corner.
        axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2)

    first = worst[0]
    text = (
        f'Bars: accuracy lost with one layer alone in int8, for the {len(worst)} layers that cost '
        f'most; at the top {first.name} with {first.agreement_lost:.3f} of agreement'
    )
    return draw('effects', text, paint, 1.1 + 0.2 * len(worst))


def _signals(analysis: Analysis) -> Chart:
    by_name = {layer.name: layer for layer in analysis.layers}
    layers = [by_name[name] for name in analysis.order]
    lines: list[tuple[str, Callable[[LayerReport], float]]] = [
        ('weights', lambda layer: layer.weight_db),
        ('output, own', lambda layer: layer.output_db),
        ('input, running', lambda layer: layer.read_db),
    ]

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        styles = (theme.third, ':', 'x'), (theme.first, '-', 'o'), (theme.second, '--', 's')
        for (label, value), (colour, line, mark) in zip(lines, styles, strict=True):
            decibels = np.clip([value(layer) for layer in layers], -10, HIGHEST_DB)
            if not np.isnan(decibels).all():
                axes.plot(
                    np.arange(1, len(layers) + 1), decibels, line, color=colour, marker=mark,
                    markersize=2.2, linewidth=1, label=label,
                )  # fmt: skip
        axes.set_xlabel('layer, in the order of execution')
        axes.set_ylabel('signal to noise in dB')
        axes.legend(loc='upper right', ncols=3)
        axes.set_ylim(top=axes.get_ylim()[1] + 8)

    known = [layer.output_db for layer in layers if math.isfinite(layer.output_db)]
    middle = f', {np.median(known):.1f} dB for the median layer' if known else ''
    text = f'Lines: signal to noise of {len(layers)} layers in the order of execution{middle}'
    return draw('signals', text, paint)


def _weights(analysis: Analysis) -> Chart:
    histogram = analysis.weights

    def paint(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2)
        bars = np.array(histogram.bars)
        edges = np.linspace(-histogram.limit, histogram.limit, len(bars) + 1)
        upper.stairs(bars / histogram.count, edges, fill=True, color=theme.first)
        upper.set_yscale('log')
        upper.set_ylabel('share')
        upper.set_xlabel('weight')
        shares = histogram.shares
        places = np.arange(len(shares))
        lower.bar(places, [100 * share for _, share, _ in shares], color=theme.first)
        for place, (_, share, _) in zip(places, shares, strict=True):
            if share >= 0.01:
                lower.text(place, 100 * share, f'{share:.0%}', ha='center', va='bottom', fontsize=6)
        lower.set_xticks(places, [f'$2^{{{exponent}}}$' for exponent, _, _ in shares])
        lower.tick_params(axis='x', labelsize=6.5)
        lower.margins(y=0.2)
        lower.set_ylabel('% of the weights')
        lower.set_xlabel('magnitude up to')

    top = max(histogram.shares, key=lambda row: row[1])
    text = (
        f'Histograms of {histogram.count:,} weights by value and by power of two; most, '
        f'{top[1]:.0%}, have magnitudes up to 2 to the power of {top[0]}'
    )
    return draw('weights', text, paint, 3.6)


def _classes(analysis: Analysis) -> Chart | None:
    rows = [d for d in analysis.differences if d.name.startswith('AP of ')]
    rows = sorted(rows, key=lambda d: d.difference)
    if not rows:
        return None
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        rows = rows[:half] + rows[-half:]

    def paint(figure: Figure, theme: Theme) -> None:
        _differences(figure.subplots(), rows, theme)

    text = (
        f'Differences of AP for {len(rows)} classes with their intervals, from '
        f'{rows[0].difference:+.3f} for {rows[0].name[6:]} to {rows[-1].difference:+.3f} for '
        f'{rows[-1].name[6:]}'
    )
    return draw('classes', text, paint, 0.9 + 0.19 * len(rows))


def _differences(axes: Axes, rows: Sequence[Difference], theme: Theme) -> None:
    places = np.arange(len(rows))
    for place, row in zip(places, rows, strict=True):
        colour = theme.second if row.visible else theme.third
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4)
        axes.plot([row.difference], [place], 'o', color=colour, markersize=3.2)
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    axes.set_yticks(places, [_short(row.name.removeprefix('AP of ')) for row in rows])
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    axes.set_xlabel('AP of int8 less AP of float, 95 % interval')


def _costs(analysis: Analysis) -> Chart:
    by_name = {layer.name: layer for layer in analysis.layers}
    costs = [by_name[name].cost for name in analysis.order]
    sides: Sequence[tuple[str, Mapping[str, list[float]]]] = [
        ('KiB', {'float': [c.float_bytes / 1024 for c in costs],
                 'int8': [c.int8_bytes / 1024 for c in costs]}),
        ('ms', {'float': [c.float_ms for c in costs], 'int8': [c.int8_ms for c in costs]}),
    ]  # fmt: skip

    def paint(figure: Figure, theme: Theme) -> None:
        for axes, (unit, values) in zip(figure.subplots(2, sharex=True), sides, strict=True):
            places = np.arange(1, len(costs) + 1)
            axes.bar(places, values['float'], color=theme.grid, edgecolor=theme.third,
                     linewidth=0.4, width=0.9, label='float')  # fmt: skip
            axes.bar(places, values['int8'], color=theme.first, width=0.6, label='int8')
            axes.set_ylabel(unit)
            axes.grid(axis='x', visible=False)
        axes.set_xlabel('layer, in the order of execution')
        figure.axes[0].legend(loc='upper left', ncols=2)

    total = {unit: {k: sum(v) for k, v in values.items()} for unit, values in sides}
    text = (
        f'Bars: bytes and time of each layer, in all {total["KiB"]["float"]:.0f} KiB of float '
        f'weights against {total["KiB"]["int8"]:.0f} KiB of int8, and {total["ms"]["float"]:.2f} '
        f'ms against {total["ms"]["int8"]:.2f} ms'
    )
    return draw('costs', text, paint, 3.4)


def _short(name: str, most: int = 32) -> str:
    """``name``, or as many of its last parts as there is room for."""
    parts = name.split('.')
    while len(name) > most and len(parts) > 1:
        parts = parts[1:]
        name = f'…{".".join(parts)}'
    return name if len(name) <= most else f'{name[: most - 1]}…'
