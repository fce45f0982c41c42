"""The CUDA backend on the CPU, with its kernels emulated."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conformance import BackendConformance
from cuda_cases import CASES, S8, differing, graph_of
from emulation import ORDERS, EmulatedBackend, every_choice, set_order
from whole_detector import Comparison, quantized_detector

from mmclipq.backends import build_backend
from mmclipq.backends.compiled import cuda
from mmclipq.errors import ClipQError
from mmclipq.graph import ir


@pytest.fixture(autouse=True)
def library(emulated, monkeypatch):
    """The emulated kernels in the hardest order: late copies, threads backwards."""
    monkeypatch.setattr(EmulatedBackend, 'emulated', emulated)
    set_order(emulated, True, True)
    return emulated


class TestEmulated(BackendConformance):
    backend = 'cuda_emulation'


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('case', CASES)
def test_every_tile_and_split(library, monkeypatch, case, order):
    set_order(library, *order)
    wrong = {}
    for choice in every_choice(library):
        monkeypatch.setattr(EmulatedBackend, 'forced', choice)
        if count := differing('cuda_emulation', case, repeat=2):
            wrong[choice] = count
    assert not wrong


@pytest.mark.parametrize('name', ['mobilenetv2', 'faster_rcnn'])
def test_every_code_of_an_emulated_detector(name):
    model, quantized, _ = quantized_detector(name)
    Comparison(model, quantized, 'cuda_emulation').check((1, 32, 64), runs=1)


def small_graph(seed=0):
    return graph_of(x=(1, 48, 6, 5), outputs=32, kernel=3, padding=(1, 1), seed=seed)


def planned_of(backend):
    (planned,) = backend._planned.values()
    return planned


def test_split_products_leave_zeros(monkeypatch):
    monkeypatch.setattr(EmulatedBackend, 'forced', (4, 3))
    graph, inputs = graph_of(**CASES['many steps of depth'])
    backend = build_backend('cuda_emulation', graph)
    backend.run(*inputs)
    sums, counters = planned_of(backend).externals[-2:]
    assert len(sums) > 1
    assert not sums.any()
    assert not counters.any()


def test_results_stay_when_others_come():
    graph, inputs = small_graph()
    backend = build_backend('cuda_emulation', graph)
    first = backend.run(*inputs)
    kept = first.clone()
    second = backend.run(-inputs[0])
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_shapes_are_bounded(monkeypatch):
    monkeypatch.setattr(cuda, 'MAX_SHAPES', 3)
    graph, _ = small_graph()
    backend = build_backend('cuda_emulation', graph)
    reference = build_backend('reference', graph)
    for size in (3, 4, 5, 6, 3, 6, 7):
        image = torch.rand(1, 48, size, 4)
        assert torch.equal(backend.run(image), reference.run(image))
    assert len(backend._planned) == 3


def test_threads_share_a_backend():
    graph, _ = small_graph()
    backend = build_backend('cuda_emulation', graph)
    reference = build_backend('reference', graph)
    images = [torch.rand(1, 48, 4 + i % 3, 5) for i in range(6)]
    wanted = [reference.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(backend.run, images * 3))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 3, strict=True))


def steps_of(planned):
    return [type(step).__name__ for step in planned.program._steps]


def concatenation(channels):
    """Two convolutions and an upsampled map side by side, read by one more."""
    g = torch.Generator().manual_seed(3)
    nodes = [ir.Input('in', ir.FLOAT), ir.Quantize('x', S8, 'in')]
    constants = {}
    sizes = {'a': (channels, 32), 'b': (16, 32), 'y': (24, channels + 16 + 32)}
    for name, (outputs, inputs) in sizes.items():
        constants |= {
            f'{name}w': torch.randint(-128, 128, (outputs, inputs, 1, 1), generator=g).to(
                torch.int8
            ),
            f'{name}e': torch.zeros(outputs, dtype=torch.int32),
            f'{name}m': torch.rand(outputs, generator=g) * 2.0**-16,
            f'{name}b': torch.randn(outputs, generator=g) * 0.1,
        }

    def conv(name, x):
        return ir.Conv(name, S8, x, *(f'{name}{key}' for key in 'wemb'))

    nodes += [conv('a', 'x'), conv('b', 'x'), ir.MaxPool('p', S8, 'x', (2, 2), (2, 2))]
    nodes += [ir.Upsample('u', S8, 'p', like='x'), ir.Concat('c', S8, ('a', 'b', 'u'))]
    nodes.append(conv('y', 'c'))
    return ir.Int8Graph(tuple(nodes), ir.Ref('y'), constants)


@pytest.mark.parametrize(('channels', 'copies'), [(48, 0), (17, 2)])
def test_convolutions_write_into_concatenations_where_that_is_aligned(channels, copies):
    graph = concatenation(channels)
    backend = build_backend('cuda_emulation', graph)
    image = torch.randn(1, 32, 6, 5)
    assert torch.equal(backend.run(image), build_backend('reference', graph).run(image))
    assert steps_of(planned_of(backend)).count('Copy') == copies


def test_added_maps_are_read_where_they_are():
    graph, inputs = graph_of(**CASES['a sum of a smaller map'])
    backend = build_backend('cuda_emulation', graph)
    backend.run(*inputs)
    assert 'Upsample' not in steps_of(planned_of(backend))
    assert set(backend.codes(*inputs)) == {'x', 's', 'r', 'y'}


def test_on_a_cpu_it_says_what_to_use():
    graph, _ = small_graph()
    with pytest.raises(ClipQError, match='backend .cuda.: it runs on a GPU, not on cpu; use'):
        build_backend('cuda', graph)
