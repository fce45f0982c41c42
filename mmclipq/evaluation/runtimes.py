"""What another runtime makes of an exported detector: its codes and its integer layers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .._compat import as_detector
from ..apis.export_file import exportable_graphs
from ..apis.quantize_model import preprocessed
from ..backends import Backend, build_backend
from ..backends.runtimes.exported import ExportedBackend
from ..detector import Int8Parts
from ..exporters.onnx_file import graph_model
from ..exporters.qdq import leaves_by_name
from ..graph import ir
from ..lowering.rounded import CodeDifference, compare_codes
from .isolated import isolated


@dataclass
class RuntimeReport:
    """What :func:`compare_runtime` found.

    Attributes:
        runtime: Name of the backend.
        images: Number of images.
        codes: Per tensor, the runtime's codes against the reference's, each of both running freely.
        alone: The same with every step reading the reference's codes: its own differences.
        parted: Tensors with differing codes of an image batch on which no tensor that they depend
            on has any, with their largest difference there: the places where both part.
        outputs: Per float32 output of the deployed graph, the largest difference, and the largest
            value of the reference.
        integer: Layers that the runtime executes in 8-bit integers.
        other: Layers that it does not, with the operation that stands for them.
        bytes: Of the exported models.
        float_bytes: Of the float32 weights and biases that they replace.
    """

    runtime: str
    images: int = 0
    codes: dict[str, CodeDifference] = field(default_factory=dict)
    alone: dict[str, CodeDifference] = field(default_factory=dict)
    parted: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, tuple[float, float]] = field(default_factory=dict)
    integer: list[str] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    float_bytes: int = 0

    def __str__(self) -> str:
        lines = [
            f'{self.runtime}, {self.images} images, {len(self.codes)} tensors:',
            f'free running {_sum(self.codes)}',
            f"each step alone, on the reference's codes, {_sum(self.alone)}",
        ]
        if self.parted:
            lines.append(
                f'they part first in {len(self.parted)} tensors, there at most by '
                f'{max(self.parted.values())} step(s): {", ".join(self.parted)}'
            )
        for name, d in sorted(self.codes.items(), key=lambda item: -item[1].rate)[:5]:
            if d.differing:
                lines.append(f'  {name}: {d.rate:.3%}, at most by {d.largest} step(s)')
        for name, (apart, largest) in self.outputs.items():
            lines.append(f'output {name}: at most {apart:.4g} apart, of values up to {largest:.4g}')
        count = len(self.integer) + len(self.other)
        if not count:
            return '\n'.join(lines)
        lines.append(f'{len(self.integer)} of {count} layers run in 8-bit integers')
        kinds: dict[str, list[str]] = {}
        for name, kind in self.other.items():
            kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            lines.append(f'  as {kind}: {", ".join(names)}')
        lines.append(
            f'ONNX: {self.bytes / 2**20:.2f} MiB, {self.bytes / max(self.float_bytes, 1):.2%} of '
            'the float32 weights'
        )
        return '\n'.join(lines)

    def table(self) -> str:
        """Share of differing codes and largest difference of every tensor, in Markdown."""
        lines = [
            '| tensor | codes | differ alone | at most | free running | at most |',
            '|---|---|---|---|---|---|',
        ]
        for name, d in self.codes.items():
            own = self.alone[name]
            lines.append(
                f'| {name} | {d.total} | {own.rate:.4%} | {own.largest} | {d.rate:.4%} | '
                f'{d.largest} |'
            )
        return '\n'.join(lines)


def _sum(codes: Mapping[str, CodeDifference]) -> str:
    total = sum(d.total for d in codes.values())
    differing = sum(d.differing for d in codes.values())
    largest = max((d.largest for d in codes.values()), default=0)
    share = differing / max(total, 1)
    return f'{differing} of {total} codes differ ({share:.4%}), at most by {largest} step(s)'


def _add(sums: dict[str, CodeDifference], name: str, new: CodeDifference) -> None:
    old = sums.get(name, CodeDifference(0, 0, 0))
    sums[name] = CodeDifference(
        old.differing + new.differing, old.total + new.total, max(old.largest, new.largest)
    )


class _Watched:
    """Runs a part on the reference and in the runtime on the same inputs, and counts.

    Boxes read the reference's features and regions, so each graph is compared by itself.
    """

    def __init__(
        self, reference: Backend, other: Backend, alone: Backend, report: RuntimeReport
    ) -> None:
        self._reference, self._other, self._alone = reference, other, alone
        self._report = report

    def run(self, *inputs: Tensor) -> Any:
        graph, report = self._reference.graph, self._report
        inputs = tuple(map(self._reference.entry_values, inputs))
        wanted, found = self._reference.codes(*inputs), self._other.codes(*inputs)
        apart: set[str] = set()  # tensors that differ or depend on one that does
        for node in graph.nodes:
            if isinstance(node, ir.Input):
                continue
            inherited = not apart.isdisjoint(node.inputs)
            if inherited:
                apart.add(node.name)
            if not node.type.is_codes:
                continue
            new = compare_codes(found[node.name], wanted[node.name])
            _add(report.codes, node.name, new)
            if new.differing and not inherited:
                apart.add(node.name)
                report.parted[node.name] = max(report.parted.get(node.name, 0), new.largest)
        inner = [n.name for n in graph.nodes if n.type.is_codes and not isinstance(n, ir.Input)]
        for name, codes in self._alone.run(*inputs, *(wanted[name] for name in inner)).items():
            _add(report.alone, name, compare_codes(codes, wanted[name]))
        result = self._reference.run(*inputs)
        # With every tensor as an output a runtime may fuse less than in the deployed graph.
        deployed = leaves_by_name(self._other.run(*inputs))
        for name, values in leaves_by_name(result).items():
            if values.is_floating_point() and values.numel():
                distance = float((deployed[name] - values).abs().max())
                old = report.outputs.get(name, (0.0, 0.0))
                report.outputs[name] = max(old[0], distance), max(old[1], float(values.abs().max()))
        return result


def compare_runtime(
    detector: nn.Module, parts: Int8Parts, batches: Iterable[Any], runtime: str
) -> RuntimeReport:
    """Compare a runtime with the reference on images, tensor by tensor.

    Args:
        detector: An :class:`Int8Detector`.
        parts: Its integer graphs.
        batches: What a data loader gives, or preprocessed images.
        runtime: ``'onnxruntime'``, ``'openvino'``, or ``'table'`` for the table of exponents.

    Raises:
        ClipQError: if the runtime is not installed, or a part or node has no exported form.
    """
    report = RuntimeReport(runtime)
    watched = []
    for graph in exportable_graphs(parts):
        reference = build_backend('auto', graph, detector)
        other = build_backend(runtime, graph, detector)
        alone = build_backend(runtime, isolated(graph), detector)
        watched.append(_Watched(reference, other, alone, report))
        if not isinstance(other, ExportedBackend):
            continue
        model = graph_model(graph, detector, target=other.target)
        integer, left = _LAYERS[runtime](model, [node.name for node in graph.products()])
        report.integer += integer
        report.other |= left
        report.bytes += model.ByteSize()
        # A head that reads several levels has one weight for all of them.
        layers = {node.weight: node for node in graph.products()}
        report.float_bytes += sum(
            4 * (graph.constants[node.weight].numel() + graph.constants[node.bias].numel())
            for node in layers.values()
        )
    dense, *boxes = watched
    with ExitStack() as patches, torch.no_grad():
        patches.enter_context(mock.patch.object(detector, 'int8_backend', dense))
        if boxes:
            patches.enter_context(mock.patch.object(detector.roi_head, 'int8_boxes', boxes))
        for images, samples in preprocessed(detector, batches):
            report.images += len(images)
            as_detector(detector).predict(images, samples)
    return report


def onnxruntime_layers(model: Any, layers: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Layers that ONNX Runtime's optimizer turns into integer operations, and the others.

    Args:
        model: ONNX model.
        layers: Names of the layers in the graph.
    """
    import onnx

    from ..backends.runtimes.onnxruntime import session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'optimized.onnx'
        session(model, str(path))
        nodes = onnx.load(path).graph.node
    # A fused node keeps the name of the product inside, with a number of ONNX Runtime's behind it.
    kinds = {
        node.name.rpartition('.sum')[0]: node.op_type
        for node in nodes
        if node.op_type in ('QLinearConv', 'QGemm', 'Conv', 'FusedConv', 'Gemm', 'MatMul',
                            'MatMulIntegerToFloat', 'QLinearMatMul', 'FusedGemm')
    }  # fmt: skip
    integer = [n for n in layers if kinds.get(n, '').startswith(('QLinear', 'QGemm', 'MatMulInt'))]
    return integer, {n: kinds.get(n, 'nothing') for n in layers if n not in integer}


def openvino_layers(model: Any, layers: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Layers that OpenVINO by itself executes with 8-bit inputs, from its runtime model, and the
    others."""
    from ..backends.runtimes.openvino import compiled
    from ..exporters.openvino_ir import convert

    kinds: dict[str, str] = {}
    for op in compiled(convert(model), integers=True).get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        kind = info['layerType'].astype(str)
        if kind not in ('Convolution', 'FullyConnected', 'MatMul'):
            continue
        precision = info['runtimePrecision'].astype(str)
        # Parts of a node carry its name with a slash and a word behind it.
        for name in info['originalLayersNames'].astype(str).split(','):
            kinds.setdefault(name.partition('/')[0], f'{kind} in {precision}')
    found = {name: kinds.get(f'{name}.sum', 'nothing') for name in layers}
    integer = [name for name, kind in found.items() if kind.endswith(('in i8', 'in u8'))]
    return integer, {name: kind for name, kind in found.items() if name not in integer}


_LAYERS = {'onnxruntime': onnxruntime_layers, 'openvino': openvino_layers}
