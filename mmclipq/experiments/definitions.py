"""Reads the definitions of tables, figures and data sets: YAML files beside this one.

A *run* says how a detector is trained and in which form it is measured; a *row* is a run with a
name and the paper's numbers; a *table* is a list of rows and which of them are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.fileio import load

from ..errors import ClipQError

FOLDER = Path(__file__).parent / 'definitions'
TABLES = tuple(f'table{n}' for n in range(1, 10)) + ('figure7', 'figure8')
DATASETS = ('digits', 'bccd', 'voc', 'coco')
METRICS = ('AP', 'AP50', 'AP75', 'AR1', 'AR10', 'AR100')
"""COCO's figures in the paper's order; it calls the last three all AR 0.5:0.95."""
KINDS = ('metrics', 'rivals', 'datasets', 'histogram', 'curves')
BASES = ('finetune', 'float', 'scratch')
FORMS = ('float', 'int8')


@dataclass(frozen=True)
class Run:
    """How a detector is trained and measured.

    Attributes:
        base: ``'float'``: the stock training alone; ``'finetune'``: the short schedule after it,
            with clipping if ``clipq`` says so, else as a control; ``'scratch'``: clipped from the
            start, with the stock training's schedule.
        clipq: Options of the ``clipq`` section. After ``'float'`` they convert without training.
        svd: Learning rate of SVD-compressed FC layers as a share of the others'; None: dense ones.
        rival: Name of a rival's adapter that trains or converts in its own way.
        form: ``'float'`` or ``'int8'``.
    """

    base: str = 'finetune'
    clipq: Mapping[str, Any] | None = None
    svd: float | None = None
    rival: str | None = None
    form: str = 'float'


@dataclass(frozen=True)
class Row:
    """One line: the paper's numbers in the table's columns, None where it has none."""

    name: str
    run: Run
    paper: tuple[float, ...] | None = None
    paper_name: str | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes:
        name: Such as ``'table3'``.
        title: The paper's.
        kind: What is printed: one of :data:`KINDS`.
        detectors: Those that it can be made for; the first is the paper's.
        rows: Its lines.
        compare: Pairs of names of rows whose difference of AP is told with its interval.
        extra: What only this kind has.
    """

    name: str
    title: str
    kind: str
    detectors: tuple[str, ...]
    rows: tuple[Row, ...]
    compare: tuple[tuple[str, str], ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class DataSet:
    """A data set with the configs that train on it.

    Attributes:
        name: Such as ``'voc'``.
        title: For headings.
        folder: ``default`` path, environment ``variable`` that the configs read it from, and
            ``made_in``: where in the work folder it is made.
        needs: Files and folders that must be there.
        make: Options of ``tools/make_digits.py``; None if it cannot be made.
        headline: The one figure of Table 9.
        detectors: By name: configs ``float`` and ``finetune``, and ``svd_rank``.
        options: Of every config; ``float_options`` of those of the stock training.
    """

    name: str
    title: str
    folder: Mapping[str, str]
    headline: str
    detectors: Mapping[str, Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    make: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    float_options: Mapping[str, Any] = field(default_factory=dict)


def _known(found: Mapping[str, Any], wanted: Sequence[str], where: str) -> None:
    if unknown := sorted(set(found) - set(wanted)):
        raise ClipQError(f'{where}: found {unknown}, wanted some of {sorted(wanted)}')


def _one_of(value: Any, wanted: Sequence[str], where: str) -> None:
    if value not in wanted:
        raise ClipQError(f'{where}: found {value!r}, wanted one of {", ".join(wanted)}')


def merged(first: Any, second: Any) -> Any:
    """``first`` with the entries of ``second``, nested mappings merged."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return second
    return {**first, **{key: merged(first.get(key), value) for key, value in second.items()}}


def _row(content: Mapping[str, Any], common: Mapping[str, Any], where: str) -> Row:
    runs = ('base', 'clipq', 'svd', 'rival', 'form')
    _known(content, (*runs, 'name', 'paper', 'paper_name'), where)
    fields = {key: content[key] for key in runs if key in content}
    if fields.get('clipq') is not None:
        fields['clipq'] = merged(common, fields['clipq'])
    run = Run(**fields)
    _one_of(run.base, BASES, f'{where}: base')
    _one_of(run.form, FORMS, f'{where}: form')
    if run.base == 'scratch' and run.clipq is None:
        raise ClipQError(f'{where}: found base scratch without clipq, wanted its options')
    paper = content.get('paper')
    return Row(content['name'], run, paper and tuple(paper), content.get('paper_name'))


def parse_table(name: str, content: Mapping[str, Any]) -> Table:
    """The table that a file's content defines.

    Raises:
        ClipQError: naming what the file says and what was wanted.
    """
    extra = ('bounds', 'paper_shares', 'paper_lines')
    _known(content, ('title', 'kind', 'detectors', 'clipq', 'rows', 'compare', *extra), name)
    kind = content.get('kind', 'metrics')
    _one_of(kind, KINDS, f'{name}: kind')
    common = content.get('clipq', {})
    rows = tuple(_row(row, common, f'{name}, {row.get("name")}') for row in content['rows'])
    names = [row.name for row in rows]
    control = 'Float control'
    pairs = content.get('compare')
    if pairs is None:
        others = [n for n in names if n not in (control, 'Baseline')] if control in names else []
        pairs = [(control, other) for other in others]
    for pair in pairs:
        for member in pair:
            _one_of(member, names, f'{name}: compare')
    return Table(
        name, content['title'], kind, tuple(content['detectors']), rows,
        tuple((first, second) for first, second in pairs),
        {key: content[key] for key in extra if key in content},
    )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    return load(path)


def load_table(name: str) -> Table:
    """The table or figure called ``name``."""
    _one_of(name, TABLES, 'table')
    return parse_table(name, _read(FOLDER / f'{name}.yaml'))


def load_dataset(name: str) -> DataSet:
    """The data set called ``name``."""
    _one_of(name, DATASETS, '--data')
    content = _read(FOLDER / 'datasets' / f'{name}.yaml')
    content['needs'] = tuple(content.get('needs', ()))
    return DataSet(name, **content)


def tables_for(names: Sequence[str], dataset: DataSet, detector: str | None) -> dict[str, Table]:
    """Tables by name with the first of their detectors that the data set has.

    Of several tables those that cannot be made for it are left out.

    Raises:
        ClipQError: if none can.
    """
    found = {name: load_table(name) for name in names}
    kept = {name: table for name, table in found.items() if detector_of(table, dataset, detector)}
    if not kept:
        table = next(iter(found.values()))
        raise ClipQError(
            f'{table.name}: found no config of {detector or " or ".join(table.detectors)} on '
            f'{dataset.name}, wanted one of {", ".join(sorted(set(table.detectors)))} among '
            f'{", ".join(dataset.detectors)}'
        )
    return kept


def detector_of(table: Table, dataset: DataSet, detector: str | None) -> str | None:
    """The detector that ``table`` is made for, None if there is none."""
    wanted = table.detectors if detector is None else [detector]
    return next((d for d in wanted if d in table.detectors and d in dataset.detectors), None)
