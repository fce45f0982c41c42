"""From the names of tables to their pages: plans, runs, and writes after every table."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ClipQError
from .definitions import DataSet, Table, detector_of, load_dataset, tables_for
from .engine import Store
from .figures import add_shares, draw_curves
from .files import write
from .recipe import Recipes
from .report import markdown
from .summary import jobs_of, summarize


@dataclass
class Request:
    """What was asked for.

    Attributes:
        tables: Names of tables and figures, in the order in which they are made.
        data: Name of the data set.
        seeds: How many.
        detector: One for all tables; by default the paper's.
        work_dir: Where trainings are kept.
        out: Where Markdown, JSON and PNG go.
        at_once: Number of runs at the same time.
        report: Whether to print what is there and run nothing.
        budget: Entries that replace those of every config.
        stock: A trained checkpoint of the stock detector.
    """

    tables: Sequence[str]
    data: str
    seeds: int
    detector: str | None
    work_dir: Path
    out: Path
    at_once: int = 1
    report: bool = False
    budget: Mapping[str, Any] = field(default_factory=dict)
    stock: Path | None = None


def find_data(dataset: DataSet, work_dir: Path, make: bool) -> None:
    """Return if the data set is there; digits are made.

    Raises:
        ClipQError: naming what is absent and where it should lie.
    """
    folder = dataset.folder
    variable = folder.get('variable')
    if 'made_in' in folder:
        root = Path(os.environ.setdefault(variable or '', str(work_dir / folder['made_in'])))
        if make and root == work_dir / folder['made_in']:
            _make_digits(root, dataset.make or {})
        return
    root = Path(os.environ.get(variable or '', folder['default']))
    lacks = next((name for name in dataset.needs if not (root / name).exists()), None)
    if lacks is not None and make:
        where = f'there or in a folder that {variable} names' if variable else 'there'
        raise ClipQError(
            f'{root / lacks}: found no such path, wanted the data set "{dataset.title}" {where}'
        )


def _make_digits(root: Path, options: Mapping[str, Any]) -> None:
    """The digits with these options; those that are there already are kept."""
    from .. import base_config

    tool = Path(base_config()).parents[2] / 'tools' / 'make_digits.py'
    command = [sys.executable, '-W', 'ignore', str(tool), '--out', str(root)]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        command += [f'--{name}', *map(str, values)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
        raise ClipQError(f'{root}: found no way to make the digits ({reason})')


def make_tables(request: Request, store: Store | None = None) -> Iterator[tuple[str, str]]:
    """Train what is missing and write each table; yields its name and Markdown.

    A failed run is told and leaves its row empty.

    Raises:
        ClipQError: if the data set is absent, no table can be made for it, or a run failed; the
            last after all others are done.
    """
    dataset = load_dataset(request.data)
    tables = tables_for(request.tables, dataset, request.detector)
    find_data(dataset, request.work_dir.resolve(), make=not request.report)
    store = store or Store(request.work_dir)
    request.out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(request.seeds))
    plans: dict[str, tuple[Table, Recipes]] = {}
    for name, table in tables.items():
        detector = detector_of(table, dataset, request.detector)
        assert detector is not None  # tables_for keeps those that have one
        plans[name] = table, Recipes(dataset, detector, request.budget, request.stock)
    failed: list[str] = []
    if not request.report:
        jobs = [job for table, r in plans.values() for job in jobs_of(table, r, seeds)]
        failed = store.run(jobs, request.at_once)
    for name, (table, recipes) in plans.items():
        summary = summarize(table, dataset, recipes, seeds, store)
        base = request.out / f'{name}_{request.data}'
        if table.kind == 'histogram':
            add_shares(summary, recipes, store, base.with_suffix('.png'))
        if table.kind == 'curves':
            draw_curves(summary, base.with_suffix('.png'))
        text = markdown(summary)
        write(base.with_suffix('.json'), summary.as_dict())
        base.with_suffix('.md').write_text(text, encoding='utf-8')
        yield name, text
    if failed:
        raise ClipQError(f'found {len(failed)} runs that failed, wanted none; first: {failed[0]}')
