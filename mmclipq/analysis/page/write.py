"""Writes the folder of a report: ``index.html``, its pictures, and ``report.json``."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...errors import ClipQError, cannot_write
from ...graph.writing import replace_folder, temporary_folder
from ...version import __version__
from ..result import Analysis
from . import words
from .charts import Chart, charts
from .photos import Row, rows

PAGE, FIGURES = 'index.html', 'report.json'
_HERE = Path(__file__).parent


def check_folder(out: str | os.PathLike) -> None:
    """Return if a report may be written to ``out``: a new, an empty or an earlier report's folder.

    Raises:
        ClipQError: naming it and what was found.
    """
    out = Path(out)
    if out.is_file():
        raise ClipQError(f'{out}: found a file, wanted the name of a folder for the report')
    if out.is_dir() and any(out.iterdir()) and not (out / FIGURES).is_file():
        raise ClipQError(
            f'{out}: found a folder with other files, wanted a new one or that of an earlier report'
        )


def _uri(kind: str, file: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(file).decode()}'


def render(analysis: Analysis, drawn: Mapping[str, Chart], photos: Mapping[str, list[Row]]) -> str:
    """The page, with every picture inside.

    Args:
        analysis: The figures.
        drawn: The charts by name.
        photos: Images with most ``'lost'`` and ``'gained'`` boxes.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(words.FILTERS)
    return environment.get_template('page.html').render(
        a=analysis,
        charts=drawn,
        photos=photos,
        style=(_HERE / 'page.css').read_text(),
        version=__version__,
        uri=_uri,
        words=words,
    )


def _fill(folder: Path, analysis: Analysis) -> None:
    """Write the files of a report."""
    folder.mkdir()
    drawn = charts(analysis)
    shown = {
        name: list(rows(changes, analysis.classes))
        for name, changes in (('lost', analysis.lost), ('gained', analysis.gained))
    }
    for chart in drawn.values():
        (folder / f'{chart.name}.png').write_bytes(chart.light)
    for name, found in shown.items():
        for number, row in enumerate(found, 1):
            for photo in row.photos:
                (folder / f'{name}-{number}-{photo.title}.jpg').write_bytes(photo.file)
    (folder / PAGE).write_text(render(analysis, drawn, shown))
    (folder / FIGURES).write_text(json.dumps(analysis.as_dict(), indent=1) + '\n')


def write_report(analysis: Analysis, out: str | os.PathLike) -> Path:
    """Write the folder ``out`` and return the page's path; an earlier report there is replaced.

    The folder appears whole or not at all.

    Raises:
        ClipQError: as :func:`check_folder` does, or if it cannot be written.
    """
    out = Path(out)
    check_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out.parent, f'.{out.name}-') as made:
            _fill(made / 'new', analysis)
            replace_folder(made / 'new', out)
    except OSError as error:
        raise cannot_write(out, error) from error
    return out / PAGE
