"""Figures 7 and 8 as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .._compat import load_checkpoint
from ..graph.writing import write_figure
from .engine import Store
from .recipe import Recipes
from .summary import Number, Summary


def add_shares(summary: Summary, recipes: Recipes, store: Store, path: Path | None) -> None:
    """Shares of the convolutions' weights by range, and their histogram in ``path``."""
    job = recipes.training(summary.table.rows[0].run, summary.seeds[0])
    result = store.result(job)
    if result is None:
        return
    file = store.path(job) / result['checkpoint']
    state = load_checkpoint(file)['state_dict']
    weights = torch.cat([w.flatten() for k, w in state.items() if w.dim() == 4]).float()
    below, row = 0.0, summary.rows[0]
    for bound in summary.table.extra['bounds']:
        inside = (weights.abs() <= bound) & (weights.abs() > below)
        if below == 0:
            inside |= weights == 0
        row.numbers[f'within {bound}'] = Number.of([inside.float().mean().item()])
        below = bound
    row.numbers['beyond'] = Number.of([(weights.abs() > below).float().mean().item()])
    row.numbers['weights'] = Number.of([float(len(weights))])
    if path is not None:
        _draw(path, lambda axis: _histogram(axis, weights), summary.table.title)


def draw_curves(summary: Summary, path: Path) -> None:
    """AP over epochs, the mean of the seeds with their least and largest."""
    if any(summary.curves.values()):
        _draw(path, lambda axis: _curves(axis, summary), summary.table.title)


def _histogram(axis: Any, weights: torch.Tensor) -> None:
    axis.hist(weights.clamp(-1, 1).numpy(), bins=256, range=(-1, 1), color='#8da0b6', log=True)
    axis.set_xlabel('weight of a convolution')
    axis.set_ylabel('number')


def _curves(axis: Any, summary: Summary) -> None:
    for (name, curve), colour in zip(summary.curves.items(), ('#666666', '#c44e52'), strict=False):
        epochs = list(curve)
        values = [list(curve[epoch].values()) for epoch in epochs]
        axis.plot(epochs, [sum(v) / len(v) for v in values], color=colour, label=name)
        low, high = [min(v) for v in values], [max(v) for v in values]
        axis.fill_between(epochs, low, high, color=colour, alpha=0.2)
    axis.set_xlabel('epoch')
    axis.set_ylabel('AP')
    axis.legend()


def _draw(path: Path, fill: Any, title: str) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    try:
        fill(axis)
        axis.set_title(title, fontsize=10)
        axis.spines[['top', 'right']].set_visible(False)
        figure.tight_layout()
        write_figure(path, figure)
    finally:
        plt.close(figure)
