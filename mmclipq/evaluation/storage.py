"""Where the bytes of a ``.clipq`` file are: by part, by layer, and what other coders would need."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from ..apis.detectors import read_float_checkpoint
from ..errors import ClipQError, first_line
from ..graph.artifact import Artifact, load_artifact, to_json
from ..graph.codes import encode_codes

_LEVEL = 19
_FAST = 12
_NNC_QP = (-32, -24, -20)


@dataclass(frozen=True)
class Part:
    """A part of a file.

    Attributes:
        name: ``codes``, ``exponents``, ``multipliers``, ``biases``, ``other constants``,
            ``float parameters``, ``graph`` or ``config``.
        values: How many numbers, or characters of JSON.
        raw: Their bytes as they are.
        packed: Bytes that zstd makes of them alone; a file packs parts together.
    """

    name: str
    values: int
    raw: int
    packed: int


@dataclass(frozen=True)
class LayerStorage:
    """A layer's codes.

    Attributes:
        name: Of the constant.
        weights: How many.
        zeros: How many of them are zero.
        entropy: Order-0 entropy of its codes, bits per weight.
        bits: Bits per weight in the entropy coded stream, as one of all; None without the package.
    """

    name: str
    weights: int
    zeros: int
    entropy: float
    bits: float | None


def _zstd(data: bytes, level: int = _LEVEL) -> int:
    return len(zstandard.ZstdCompressor(level=level).compress(data))


def _products(artifact: Artifact) -> dict[str, str]:
    """Part by name of a product's constants."""
    kinds = {
        'weight': 'codes',
        'exponents': 'exponents',
        'multiplier': 'multipliers',
        'bias': 'biases',
    }
    nodes = [(i, node) for i, graph in enumerate(artifact.graphs) for node in graph.products()]
    return {f'{i}.{getattr(n, key)}': kind for i, n in nodes for key, kind in kinds.items()}


def _constants(artifact: Artifact) -> dict[str, Tensor]:
    return {
        f'{index}.{key}': value
        for index, graph in enumerate(artifact.graphs)
        for key, value in graph.constants.items()
    }


def codes_of(artifact: Artifact) -> dict[str, Tensor]:
    """Codes of weights by number of the graph and name."""
    kinds = _products(artifact)
    found = _constants(artifact)
    return {k: v for k, v in found.items() if kinds.get(k) == 'codes'}


def parts(artifact: Artifact) -> list[Part]:
    """The parts of what a file holds."""
    kinds = _products(artifact)
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in
        ('codes', 'exponents', 'multipliers', 'biases', 'other constants')}  # fmt: skip
    for key, value in _constants(artifact).items():
        groups[kinds.get(key, 'other constants')][key] = value
    groups['float parameters'] = dict(artifact.parameters)
    found = []
    for name, group in groups.items():
        raw = b''.join(_bytes(value) for value in group.values())
        values = sum(value.numel() for value in group.values())
        found.append(Part(name, values, len(raw), _zstd(raw)))
    graph = ''.join(repr(node) for graph in artifact.graphs for node in graph.nodes)
    config = json.dumps(to_json(artifact.config)) + json.dumps(to_json(artifact.meta))
    for name, text in (('graph', graph), ('config', config)):
        raw = text.encode()
        found.append(Part(name, len(raw), len(raw), _zstd(raw)))
    return found


def _bytes(value: Tensor) -> bytes:
    """Of a tensor, by significance as the dense form has them."""
    if not value.numel():
        return b''
    flat = value.contiguous().flatten()
    return flat.view(torch.uint8).view(flat.numel(), -1).T.contiguous().numpy().tobytes()


def entropy(codes: Tensor) -> float:
    """Order-0 entropy of int8 codes in bits per code; zero of none."""
    counts = torch.bincount(codes.flatten().long() + 128, minlength=256).double()
    shares = counts[counts > 0] / max(1, codes.numel())
    return float(-(shares * shares.log2()).sum()) + 0.0


def layers(artifact: Artifact) -> list[LayerStorage]:
    """The codes of every layer."""
    codes = codes_of(artifact)
    coded = find_spec('constriction') is not None
    found = []
    for name, value in codes.items():
        bits = 8 * len(encode_codes({name: value})[1]) / value.numel() if coded else None
        zeros = value.numel() - int(value.count_nonzero())
        found.append(LayerStorage(name, value.numel(), zeros, entropy(value), bits))
    return found


def rivals(artifact: Artifact) -> dict[str, int]:
    """Bytes of all codes by the coder that packs them, those that are installed."""
    codes = codes_of(artifact)
    raw = b''.join(value.contiguous().numpy().tobytes() for value in codes.values())
    ideal = sum(entropy(value) * value.numel() for value in codes.values()) / 8
    found = {
        'int8, not packed': len(raw),
        f'zstd, level {_FAST}': _zstd(raw, _FAST),
        f'zstd, level {_LEVEL}': _zstd(raw, _LEVEL),
        'order-0 entropy by layer': round(ideal),
    }
    if find_spec('constriction') is not None:
        classes, stream = encode_codes(codes)
        packed = _zstd(classes.numpy().tobytes())
        found['adaptive models by row (--compress best)'] = len(stream) + packed
    return found


def nncodec_bytes(checkpoint: str | os.PathLike) -> dict[str, int]:
    """Bytes of a float checkpoint coded as the standard ISO/IEC 15938-17, by the package's setting.

    The package ``nncodec`` codes all tensors of floating point, with the ``qp`` that it has by
    default and two coarser ones; nothing where it is not installed.

    Raises:
        ClipQError: if the package is installed and does not import.
    """
    if find_spec('nncodec') is None:
        return {}
    try:
        from nncodec import nn as coder
    except Exception as error:
        raise ClipQError(
            f'nncodec: found that it does not import ({first_line(error)}), wanted it whole or not '
            'at all; install what it needs or remove it'
        ) from error
    state = read_float_checkpoint(checkpoint)[1]
    tensors = {key: v.numpy() for key, v in state.items() if v.is_floating_point()}
    found = {}
    for qp in _NNC_QP:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            options = {'qp': qp, 'results': folder, 'model': 'x', 'verbose': False}
            found[f'nncodec, float checkpoint, qp {qp}'] = len(coder.encode(tensors, args=options))
    return found


def report(path: str | os.PathLike, others: Mapping[str, int] | None = None) -> str:
    """Tables of a file as Markdown.

    Args:
        path: The file.
        others: Bytes by the coders that do not code its codes, as :func:`nncodec_bytes` gives them.

    Raises:
        ClipQError: if it cannot be read.
    """
    artifact = load_artifact(path)
    size = os.path.getsize(path)
    shown = parts(artifact)
    lines = [f'## {Path(path).name}: {size} bytes', '']
    lines += ['| part | values | bytes | packed alone | bits per value |', '|---|---|---|---|---|']
    lines += [
        f'| {p.name} | {p.values} | {p.raw} | {p.packed} | {8 * p.packed / max(1, p.values):.2f} |'
        for p in shown
    ]
    lines += ['', '| coder of the codes | bytes | bits per weight |', '|---|---|---|']
    weights = max(1, shown[0].values)
    coded = {**rivals(artifact), **(others or {})}
    lines += [f'| {n} | {b} | {8 * b / weights:.3f} |' for n, b in coded.items()]
    lines += [
        '',
        '| layer | weights | zeros | order-0 entropy | coded alone |',
        '|---|---|---|---|---|',
    ]
    for row in layers(artifact):
        bits = '' if row.bits is None else f'{row.bits:.2f}'
        lines.append(
            f'| {row.name} | {row.weights} | {row.zeros / row.weights:.1%} | {row.entropy:.2f} '
            f'| {bits} |'
        )
    return '\n'.join(lines)


def read_points(path: str | os.PathLike) -> dict[str, list[dict[str, float]]]:
    """Curves for :func:`plot`: lists of points with ``size`` and ``AP``, ``low``, ``high`` by name.

    ``size`` is a share of the float32 weights; ``low`` and ``high``, ends of an interval of AP, may
    be left out.

    Raises:
        ClipQError: if the file holds anything else.
    """
    try:
        content: Any = json.loads(Path(path).read_text())
        for points in content.values():
            for point in points:
                if not all(isinstance(point[key], (int, float)) for key in ('size', 'AP')):
                    raise ValueError(str(point))
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClipQError(
            f'{path}: found no points ({error}), wanted {{"name": [{{"size": 0.12, "AP": 0.4}}]}}'
        ) from error


def plot(curves: Mapping[str, Sequence[Mapping[str, float]]], out: str | os.PathLike) -> None:
    """Draw AP over size, a curve for each name, as PNG or SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for name, points in curves.items():
        ordered = sorted(points, key=lambda point: point['size'])
        sizes = [100 * point['size'] for point in ordered]
        values = [point['AP'] for point in ordered]
        below = [p['AP'] - p.get('low', p['AP']) for p in ordered]
        above = [p.get('high', p['AP']) - p['AP'] for p in ordered]
        axes.errorbar(sizes, values, [below, above], marker='o', capsize=3, label=name)
    axes.set_xlabel('size, % of the float32 weights')
    axes.set_ylabel('AP')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=150)
