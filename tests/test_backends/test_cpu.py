"""The compiled CPU backend: shared cases, whole detectors, threads, shapes, and going without."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conformance import BackendConformance
from conformance_base import ConformanceBase
from conformance_forms import FormConformance
from conformance_products import ProductConformance
from mmengine.hub import get_config
from oracle import random_codes
from whole_detector import DETECTORS, Comparison, quantized_detector

from mmclipq.apis import build_detector, quantize
from mmclipq.backends import base, build_backend
from mmclipq.backends.compiled import cpu
from mmclipq.backends.compiled.backend import group, rounded_up
from mmclipq.detector import plain_samples, to_int8
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.ops.cpu import library

REASON = library.why_unavailable()
needs_operators = pytest.mark.skipif(bool(REASON), reason=f'no CPU operators: {REASON}')


class CompiledConformance(ConformanceBase):
    """Cases that must not return to Python."""

    backend = 'cpu'

    @pytest.fixture(autouse=True)
    def _all_compiled(self, request):
        self.built = []
        yield
        parts = [part for backend in self.built for part in backend._parts]
        # Transposed convolutions have no step, and linear layers none over four axes.
        four_axes = 'several_axes' in request.node.name
        in_python = (ir.ConvTranspose, ir.Linear) if four_axes else ir.ConvTranspose
        assert all(part.compiled or isinstance(part.nodes[0], in_python) for part in parts)

    def build(self, graph):
        self.built.append(super().build(graph))
        return self.built[-1]


@needs_operators
class TestCpu(CompiledConformance, BackendConformance):
    pass


@needs_operators
class TestOlderVectors(CompiledConformance, FormConformance, ProductConformance):
    """The same operators with the vector units that every x86-64 has, and with AVX2's."""

    @pytest.fixture(autouse=True, params=[0, 1])
    def _generation(self, request):
        operators = library.library()
        assert operators.clipq_limit_generation(request.param) == request.param
        yield
        operators.clipq_limit_generation(2)


@needs_operators
class TestOneDnn(CompiledConformance, FormConformance, ProductConformance):
    """Layers through oneDNN on any processor, with weights that it does not round on an old one."""

    @pytest.fixture(autouse=True)
    def _forced(self):
        if not library.library().clipq_force_onednn(1):
            pytest.skip('built without oneDNN')
        yield
        library.library().clipq_force_onednn(0)

    def weights(self, shape, seed):
        return random_codes(shape, True, seed) // 4 * 2

    # Their weights are odd, or too large.
    test_ties_round_to_even = test_ties_of_bias_after_activation = test_saturation = None
    test_smallest_weight_and_code = test_sums_beyond_float32 = test_extremes_of_3x3_kernels = None
    test_smooth_activation_of_extreme_sums = test_conv_with_covering_padding = None
    test_transposed_convolution = None


@needs_operators
@pytest.mark.parametrize('name', DETECTORS)
def test_every_code_of_a_detector_is_the_reference_one(name):
    model, quantized, shapes = quantized_detector(name)
    comparison = Comparison(model, quantized, 'cpu')
    threads = torch.get_num_threads()
    try:
        for count, shape in enumerate(shapes, 1):
            torch.set_num_threads(count)
            comparison.check(shape)
    finally:
        torch.set_num_threads(threads)


def graph_of_convs():
    kind, constants, nodes = ir.TensorType(0), {}, []
    generator = torch.Generator().manual_seed(0)
    for i in range(3):
        constants[f'w{i}'] = torch.randint(-128, 128, (32, 32, 3, 3), generator=generator).to(
            torch.int8
        )
        constants[f'e{i}'] = torch.zeros(32, dtype=torch.int32)
        constants[f'm{i}'] = torch.rand(32, generator=generator) * 2.0**-18
        constants[f'b{i}'] = torch.randn(32, generator=generator) * 0.1
        nodes.append(
            ir.Conv(f'c{i}', kind, f'c{i - 1}' if i else 'x', f'w{i}', f'e{i}', f'm{i}', f'b{i}',
                    padding=(1, 1))
        )  # fmt: skip
    start = (ir.Input('image', ir.FLOAT), ir.Quantize('x', kind, 'image'))
    return ir.Int8Graph((*start, *nodes), ir.Ref('c2'), constants)


@needs_operators
def test_threads_share_one_backend():
    backend = build_backend('cpu', graph_of_convs())
    images = [torch.rand(1 + i % 2, 32, 8 + i % 5, 9 + i % 3) for i in range(40)]
    wanted = [backend.run(image) for image in images]
    again = build_backend('cpu', graph_of_convs())  # shapes are compiled while others run
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(again.run, images * 5))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 5, strict=True))


@needs_operators
def test_more_shapes_than_are_kept():
    backend, reference = (build_backend(b, graph_of_convs()) for b in ('cpu', 'reference'))
    for turn in range(2):
        for size in range(1, 40):
            image = torch.rand(1, 32, size, 3 + turn)
            assert torch.equal(backend.run(image), reference.run(image))


@pytest.fixture(scope='module')
def detector():
    """A whole detector of small images with the boxes of its own decoding."""
    torch.manual_seed(0)
    cfg = get_config(f'mmdet::{DETECTORS["mobilenetv2"]}')
    cfg.model.test_cfg.update(nms_pre=50, max_per_img=10)
    model = build_detector(cfg.model, random=True).eval()
    return to_int8(model, quantize(model, [torch.randn(1, 3, 64, 64)]), 'cpu')


def boxes_of(detector, image):
    (sample,) = detector.predict(image, plain_samples(image))
    found = sample.pred_instances
    return torch.cat([found.bboxes, found.scores[:, None], found.labels[:, None]], 1)


@needs_operators
def test_eight_threads_share_a_detector(detector):
    images = [torch.randn(1, 3, 32 * (1 + i % 2), 32 * (1 + i % 3)) for i in range(25)]
    wanted = [boxes_of(detector, image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: boxes_of(detector, image), images * 8))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 8, strict=True))
    assert sum(len(boxes) for boxes in wanted)


def resident_memory():
    """Bytes of memory in use now."""
    fields = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(fields['VmRSS'].split()[0]) * 1024


@needs_operators
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs Linux')
@pytest.mark.parametrize('most', [64, 2])
def test_memory_stays_where_it_was(detector, monkeypatch, most):
    """5,000 runs over 50 shapes, all of them kept or hardly any."""
    monkeypatch.setattr(cpu, 'MAX_SHAPES', most)
    monkeypatch.setattr(cpu, 'MAX_LATER_SHAPES', most)
    shapes = [(32 * (1 + i % 5), 32 * (1 + i // 5)) for i in range(50)]
    backend = build_backend('cpu', detector.int8_backend.graph)

    def turns(count):
        for _ in range(count):
            for shape in shapes:
                backend.run(torch.zeros(1, 3, *shape))

    turns(2)
    before = resident_memory()
    turns(98 if most == 64 else 8)
    assert resident_memory() - before < 16 * 2**20
    assert len(backend._planned) == min(50, 2 * most)


@needs_operators
class TestCpuFreed(BackendConformance):
    """The slower implementations, which shapes beyond the first ones get."""

    backend = 'cpu'

    @pytest.fixture(autouse=True)
    def _no_fast_ones(self, monkeypatch):
        monkeypatch.setattr(cpu, 'MAX_SHAPES', 0)


@needs_operators
class TestShapes(ConformanceBase):
    backend = 'cpu'

    def test_an_empty_batch(self):
        backend = build_backend('cpu', graph_of_convs())
        assert backend.run(torch.zeros(0, 32, 5, 5)).shape == (0, 32, 5, 5)

    def test_an_input_smaller_than_the_kernel_is_named(self):
        graph = graph_of_convs()
        nodes = [*graph.nodes[:2], *(
            ir.Conv(n.name, n.type, n.x, n.weight, n.exponents, n.multiplier, n.bias)
            for n in graph.nodes[2:]
        )]  # fmt: skip
        small = ir.Int8Graph(tuple(nodes), graph.outputs, graph.constants)
        with pytest.raises(ClipQError, match='c0: found an input of 2x2, wanted one that'):
            build_backend('cpu', small).run(torch.zeros(1, 32, 2, 2))


def test_without_operators_the_reference_runs_after_one_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(base, 'print_log', lambda text, *args: warnings.append(text))
    monkeypatch.setattr(library, '_load', lambda: 'it is not built; run: make')
    base._warn.cache_clear()
    graph = ir.Int8Graph((ir.Input('x', ir.FLOAT),), ir.Ref('x'), {})
    assert [build_backend('auto', graph).name for _ in range(3)] == ['reference'] * 3
    assert warnings == ["mmclipq: backend 'cpu' is not used: it is not built; run: make"]
    with pytest.raises(ClipQError, match="backend 'cpu': it is not built; run: make"):
        build_backend('cpu', graph)
    base._warn.cache_clear()


def test_it_is_not_for_other_devices():
    assert base.backend_class('auto', 'meta').name == 'reference'
    with pytest.raises(ClipQError, match="backend 'cpu': it runs on the CPU, not on cuda"):
        base.backend_class('cpu', 'cuda')


@needs_operators
def test_a_processor_without_vnni_gets_kernels_of_our_own():
    """oneDNN halves int8 weights there, which loses their last bit."""
    tests = [f'{__file__}::TestCpu::{name}' for name in ('test_saturation', 'test_linear')]
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'pytest', '-q', *tests],
        env={**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@needs_operators
def test_threads_follow_torch(monkeypatch):
    counts = []
    loaded = library._load()
    monkeypatch.setattr(loaded, 'clipq_set_threads', counts.append)
    backend = build_backend('cpu', graph_of_convs())
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            backend.run(torch.rand(1, 32, 4, 4))
    finally:
        torch.set_num_threads(before)
    assert counts == [1, 2, 1]


@needs_operators
def test_it_is_what_auto_takes():
    assert base.backend_class('auto').name == 'cpu'


@needs_operators
@pytest.mark.parametrize('nested', [False, True])
def test_residuals_that_are_read_later_stay(nested):
    """A sum may take the place of what it adds to only if nothing reads that afterwards."""
    kind, constants, nodes = ir.TensorType(0), {}, []
    generator = torch.Generator().manual_seed(1)
    plan = [('a', 'x', None), ('b', 'a', 'a'), ('c', 'a', 'b'), ('d', 'b' if nested else 'c', 'c')]
    plan += [('e', 'd', 'c'), ('f', 'e', 'd'), ('g', 'f', 'f')]
    for name, x, residual in plan:
        constants[f'w{name}'] = torch.randint(-128, 128, (8, 8, 1, 1), generator=generator).to(
            torch.int8
        )
        constants[f'e{name}'] = torch.zeros(8, dtype=torch.int32)
        constants[f'm{name}'] = torch.rand(8, generator=generator) * 2.0**-14
        constants[f'b{name}'] = torch.randn(8, generator=generator) * 0.1
        keys = (f'{k}{name}' for k in 'wemb')
        nodes.append(ir.Conv(name, kind, x, *keys, residual=residual))
    nodes.append(ir.Concat('whole', kind, ('g', 'c', 'e')))
    start = (ir.Input('image', ir.FLOAT), ir.Quantize('x', kind, 'image'))
    graph = ir.Int8Graph((*start, *nodes), [ir.Ref('whole'), ir.Ref('f')], constants)
    ours, reference = (build_backend(b, graph) for b in ('cpu', 'reference'))
    image = torch.rand(2, 8, 5, 7) * 2 - 1
    for _ in range(2):  # twice, because the second run meets memory that was used
        found, wanted = ours.run(image), reference.run(image)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@needs_operators
def test_a_sum_that_is_broadcast_runs_in_python():
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Input('other', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Quantize('y', kind, 'other'),
        ir.Add('sum', kind, 'x', 'y'),
        ir.Requantize('z', ir.TensorType(1), 'sum'),
    )
    graph = ir.Int8Graph(nodes, ir.Ref('z'), {})
    ours, reference = (build_backend(b, graph) for b in ('cpu', 'reference'))
    image = torch.randn(2, 4, 3, 3)
    for other in (torch.randn(2, 4, 3, 3), torch.randn(1, 4, 1, 1), torch.randn(2, 4, 3, 3)):
        assert torch.equal(ours.run(image, other), reference.run(image, other))


def test_nodes_return_to_python_as_rarely_as_can_be():
    kind = ir.TensorType(0)
    call = dict(kind='function', target='torch.sigmoid', kwargs={})
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Dequantize('v', ir.FLOAT, 'x'),
        ir.FloatCall('s', ir.FLOAT, args=(ir.Ref('v'),), **call),
        ir.Requantize('y', kind, 'x'),
        ir.Quantize('z', kind, 's'),
        ir.Add('w', kind, 'y', 'z'),
    )
    found = [(compiled, [n.name for n in part]) for compiled, part in group(nodes, set())]
    assert found == [(True, ['x', 'v', 'y']), (False, ['s']), (True, ['z', 'w'])]
    found = [(compiled, [n.name for n in part]) for compiled, part in group(nodes, {'y', 'w'})]
    assert found == [(True, ['x', 'v']), (False, ['s']), (False, ['y']), (True, ['z']),
                     (False, ['w'])]  # fmt: skip


def test_numbers_of_regions_are_rounded_up():
    sizes = [rounded_up(count) for count in range(1, 2001)]
    assert all(n >= count for count, n in enumerate(sizes, 1))
    assert all(n <= max(16 * -(-count // 16), 1.13 * count) for count, n in enumerate(sizes, 1))
    assert len(set(sizes)) < 45
    assert rounded_up(0) == 16
