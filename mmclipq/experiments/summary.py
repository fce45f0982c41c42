"""What the jobs of a table found: means and spreads over seeds, differences with intervals."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..evaluation.interval import Difference, mean_differences
from ..evaluation.matches import Matches
from ..evaluation.tuning.state import Progress
from ..version import __version__
from .definitions import METRICS, DataSet, Table
from .engine import Store
from .measuring import MATCHES
from .recipe import Job, Recipes
from .rivals import RIVALS
from .stored import load_matches, six_figures


@dataclass(frozen=True)
class Number:
    """Mean of what the seeds gave, and their standard deviation; NaN for less than two."""

    mean: float
    spread: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Number:
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values) if values else math.nan, spread, len(values))


@dataclass
class RowSummary:
    """One row's results: each figure by its name; empty where nothing was done."""

    name: str
    paper: tuple[float, ...] | None
    paper_name: str | None
    numbers: dict[str, Number] = field(default_factory=dict)
    executed: str = ''
    by_seed: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass
class Comparison:
    """AP of one row against another's over the seeds that both have."""

    first: str
    second: str
    seeds: list[int]
    difference: Difference
    spread: float


@dataclass
class Summary:
    """All that a table shows."""

    table: Table
    dataset: DataSet
    detector: str
    seeds: list[int]
    rows: list[RowSummary]
    comparisons: list[Comparison] = field(default_factory=list)
    curves: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            'table': self.table.name,
            'title': self.table.title,
            'data': self.dataset.title,
            'detector': self.detector,
            'seeds': self.seeds,
            'rows': [asdict(row) for row in self.rows],
            'comparisons': [
                {**asdict(c), 'difference': c.difference.as_dict()} for c in self.comparisons
            ],
            'curves': self.curves,
        }


def jobs_of(table: Table, recipes: Recipes, seeds: Sequence[int]) -> list[Job]:
    """All jobs that a table needs; a rival that is not installed has none."""
    runs = {row.name: row.run for row in table.rows if not _missing(row.run.rival)}
    if table.kind == 'histogram':
        return [recipes.training(run, seeds[0]) for run in runs.values()]
    if table.kind == 'curves':
        return [recipes.training(run, seed) for seed in seeds for run in runs.values()]
    jobs = [recipes.measurement(run, seed) for seed in seeds for run in runs.values()]
    if table.kind == 'rivals':
        jobs.append(recipes.timing(runs, seeds[0]))
    return jobs


def _missing(rival: str | None) -> str:
    return '' if rival is None else RIVALS[rival].missing


@functools.lru_cache(maxsize=256)
def _matches(path: Path) -> tuple[Matches, tuple[float, ...]]:
    """What is stored at ``path``, with objects of all areas alone, and its six figures."""
    found = load_matches(path)
    one = replace(found, areas=found.areas[:1], cells=tuple(row[:1] for row in found.cells))
    return one, six_figures(one)


def summarize(
    table: Table, dataset: DataSet, recipes: Recipes, seeds: Sequence[int], store: Store
) -> Summary:
    """What is done so far of a table; rows whose jobs are not done are empty."""
    found = Summary(table, dataset, recipes.detector, list(seeds), [])
    if table.kind == 'curves':
        _add_curves(found, recipes, store)
        return found
    paths: dict[str, dict[int, Path]] = {}
    for row in table.rows:
        summary = RowSummary(row.name, row.paper, row.paper_name)
        found.rows.append(summary)
        if missing := _missing(row.run.rival):
            summary.executed = missing
            continue
        if table.kind == 'histogram':
            continue
        for seed in seeds:
            job = recipes.measurement(row.run, seed)
            result = store.result(job)
            if result is None:
                continue
            figures = {**result['metrics'], 'bytes': float(result['bytes'])}
            path = store.path(job) / MATCHES
            if path.is_file():
                paths.setdefault(row.name, {})[seed] = path
                figures |= dict(zip(METRICS, _matches(path)[1], strict=True))
            summary.by_seed[seed], summary.executed = figures, result['executed']
        names = {name for figures in summary.by_seed.values() for name in figures}
        for name in sorted(names):
            values = [f[name] for f in summary.by_seed.values() if name in f]
            summary.numbers[name] = Number.of(values)
    if table.kind == 'rivals':
        _add_times(found, recipes, store)
    kept = Progress(store.folder / 'comparisons.json', __version__)
    for first, second in table.compare:
        both = sorted(paths.get(first, {}).keys() & paths.get(second, {}).keys())
        if both:
            pairs = [(paths[first][seed], paths[second][seed]) for seed in both]
            found.comparisons.append(_compare(pairs, first, second, both, kept))
    return found


def _compare(
    pairs: list[tuple[Path, Path]], first: str, second: str, seeds: list[int], kept: Progress
) -> Comparison:
    """The difference between two rows' matches, which is looked up if it is ``kept``."""
    key = ' '.join(path.parent.name for pair in pairs for path in pair)
    if key not in kept:
        loaded = [(_matches(a)[0], _matches(b)[0]) for a, b in pairs]
        kept[key] = asdict(mean_differences(loaded)[0])
    each = [_matches(b)[1][0] - _matches(a)[1][0] for a, b in pairs]
    return Comparison(first, second, seeds, Difference(**kept[key]), Number.of(each).spread)


def _add_times(found: Summary, recipes: Recipes, store: Store) -> None:
    runs = {row.name: row.run for row in found.table.rows if not _missing(row.run.rival)}
    result = store.result(recipes.timing(runs, found.seeds[0]))
    for row in found.rows:
        if result is not None and row.name in result['milliseconds']:
            row.numbers['milliseconds'] = Number.of([result['milliseconds'][row.name]])


def _add_curves(found: Summary, recipes: Recipes, store: Store) -> None:
    for row in found.table.rows:
        curve: dict[int, dict[str, float]] = {}
        for seed in found.seeds:
            result = store.result(recipes.training(row.run, seed))
            for epoch, metrics in (result or {}).get('curve', {}).items():
                value = metrics.get('coco/bbox_mAP')
                if value is not None:
                    curve.setdefault(int(epoch), {})[str(seed)] = value
        found.curves[row.name] = dict(sorted(curve.items()))
