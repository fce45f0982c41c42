"""Writes a ``.clipq`` file's detector in the formats of other runtimes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..detector import Int8Parts
from ..errors import ClipQError
from ..exporters.builder import DEFAULT_IR, DEFAULT_OPSET, ExportError, check_versions
from ..exporters.end2end import end2end_model
from ..exporters.metadata import metadata
from ..exporters.onnx_file import graph_model
from ..exporters.openvino_ir import ir_bytes, write_pair
from ..exporters.packages import missing
from ..exporters.seal import sealed
from ..exporters.table import c_header, multiplier_error, table
from ..exporters.targets import DEFAULT_TARGET, target_of
from ..graph.artifact import load_artifact
from ..graph.ir import Int8Graph
from ..graph.writing import temporary_folder, write_all_atomically
from .int8_file import load_int8, load_parts
from .mmdet_tools import check_out, check_range

FORMATS = {'onnx': '.onnx', 'openvino': '.xml', 'table': '.json'}


@dataclass
class ExportOptions:
    """How to write.

    Attributes:
        format: A key of :data:`FORMATS`.
        opset: Version of ONNX's operator set.
        ir_version: Version of ONNX's file format.
        target: What runs the file, see :mod:`mmclipq.exporters.targets`.
        end2end: Decoding and NMS inside.
        score_thr: Lowest score, by default the config's.
        iou_thr: IoU of suppression, by default the config's.
    """

    format: str = 'onnx'
    opset: int = DEFAULT_OPSET
    ir_version: int = DEFAULT_IR
    target: str = DEFAULT_TARGET
    end2end: bool = False
    score_thr: float | None = None
    iou_thr: float | None = None


def _check(out: Path, options: ExportOptions) -> None:
    if options.format not in FORMATS:
        raise ClipQError(f'found format {options.format!r}, wanted one of {sorted(FORMATS)}')
    check_out(out, FORMATS[options.format])
    given = options.score_thr is not None or options.iou_thr is not None
    if given and not options.end2end:
        raise ClipQError('found --score-thr or --iou-thr alone, wanted --end2end with them')
    for name, value in (('--score-thr', options.score_thr), ('--iou-thr', options.iou_thr)):
        if value is not None:
            check_range(name, value, 0, 1)
    if options.format == 'table':
        if options.end2end:
            raise ClipQError('found --end2end with --format table, wanted onnx or openvino')
        return
    needed = ('onnx',) if options.format == 'onnx' else ('onnx', 'openvino')
    if reason := missing(*needed):
        raise ClipQError(reason)
    check_versions(options.opset, options.ir_version)
    target_of(options.target)


def exportable_graphs(parts: Int8Parts) -> tuple[Int8Graph, ...]:
    """The dense graph and those of the boxes.

    Raises:
        ExportError: if there are others, naming the modules that they stand for.
    """
    if parts.graph is None:
        raise ExportError(
            'found a detector whose features are no graph, because it computes them in its own '
            'way, wanted a backbone, neck and dense head in one graph; run the .clipq file itself'
        )
    if parts.modules:
        paths = [module.path for module in parts.modules]
        names = ', '.join(paths[:3]) + (f' and {len(paths) - 3} more' if len(paths) > 3 else '')
        raise ExportError(
            f'found {names} as graphs of their own, which the detector calls between other steps '
            'and exported files cannot hold; run the .clipq file itself, or quantize with a rule '
            'of skip=True for these modules'
        )
    return (parts.graph, *parts.boxes)


def _models(path: str | os.PathLike, options: ExportOptions) -> Iterator[tuple[str, Any]]:
    """Suffixes of file names with the ONNX models of a ``.clipq`` file, built one at a time."""
    artifact, graphs = load_artifact(path), exportable_graphs(load_parts(path))
    detector = load_int8(path, backend='reference', predicts=options.end2end)
    facts = metadata(artifact.config, artifact.meta)
    if options.end2end:
        model = end2end_model(
            detector,
            graphs,
            facts,
            score_thr=options.score_thr,
            iou_thr=options.iou_thr,
            target=options.target,
            opset=options.opset,
            ir_version=options.ir_version,
        )
        yield '', model
        return
    for number, graph in enumerate(graphs):
        suffix = f'_boxes{number - 1 or ""}' if number else ''
        facts['part'] = suffix.lstrip('_') or 'dense'
        model = graph_model(
            graph,
            detector,
            target=options.target,
            opset=options.opset,
            ir_version=options.ir_version,
            metadata=facts,
        )
        yield suffix, model


def _plain(text: str) -> Any:
    """What a metadata string holds: JSON, or itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _table_files(path: str | os.PathLike, out: Path) -> dict[Path, bytes]:
    artifact = load_artifact(path)
    facts = {key: _plain(text) for key, text in metadata(artifact.config, artifact.meta).items()}
    graphs = exportable_graphs(load_parts(path))
    error = multiplier_error(graphs)
    content = table(graphs, {**facts, 'multiplier_relative_error': error})
    text = json.dumps(content, indent=1)
    return {out: text.encode(), out.with_suffix('.h'): c_header(content).encode()}


def _write(files: dict[Path, bytes]) -> None:
    pairs = [file for file in files if file.suffix == '.xml']
    for file in pairs:
        write_pair(file, files[file], files[file.with_suffix('.bin')])
    if not pairs:
        write_all_atomically(files)


def export_file(
    path: str | os.PathLike, out: str | os.PathLike, options: ExportOptions | None = None
) -> dict[Path, int]:
    """Write a ``.clipq`` file's detector to ``out`` and return the files with their sizes.

    A two-stage detector without ``end2end`` gives one file per graph, ``NAME`` and
    ``NAME_boxes``, with the features' codes between them. Everything is built before anything is
    written, and each file is whole or absent.

    Raises:
        ClipQError: for a damaged file, wrong options, missing packages, or a step that the format
            cannot express; or if the files cannot be written.
    """
    out, options = Path(out), options or ExportOptions()
    _check(out, options)
    if options.format == 'table':
        files = _table_files(path, out)
    else:
        files = {}
        for suffix, model in tqdm(_models(path, options), desc='export', unit='graph'):
            file = out.with_name(f'{out.stem}{suffix}{out.suffix}')
            if options.format == 'onnx':
                files[file] = sealed(model.SerializeToString(), '.onnx')
                continue
            with temporary_folder() as folder:
                xml, weights = ir_bytes(model, folder, file.stem)
            files |= {file.with_suffix('.bin'): weights, file: sealed(xml, '.xml')}
    try:
        _write(files)
    except OSError as error:
        raise ClipQError(f'{out}: found {error}, wanted a place to write to') from error
    return {file: len(content) for file, content in files.items()}
