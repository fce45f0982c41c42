"""The backend on ``torch._int_mm``, whose conditions on a GPU are checked on the CPU, too."""

import pytest
import torch
from conformance import BackendConformance
from whole_detector import Comparison, quantized_detector

from mmclipq.backends import build_backend, int_mm
from mmclipq.graph import ir

S8, U8 = ir.TensorType(0), ir.TensorType(0, signed=False)
pytestmark = pytest.mark.skipif(
    bool(int_mm.IntMmBackend.unavailable('cpu')), reason='no exact torch._int_mm on this CPU'
)


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """Sizes of all products, each one that a GPU takes and takes fast."""
    seen, int_mm_of_torch = [], torch._int_mm

    def checked(x, columns):
        assert x.dtype == columns.dtype == torch.int8
        assert x.is_contiguous()
        assert columns.t().is_contiguous()
        assert len(x) > 16
        assert columns.shape[0] % 8 == columns.shape[1] % 8 == 0
        seen.append((*x.shape, columns.shape[1]))
        return int_mm_of_torch(x, columns)

    monkeypatch.setattr(torch, '_int_mm', checked)
    return seen


class TestIntMm(BackendConformance):
    backend = 'int_mm'


def graph_of(kind, weight, **geometry):
    """One convolution of codes with weights up to both ends."""
    outputs = len(weight)
    constants = {
        'w': weight.to(torch.int8),
        'e': torch.zeros(outputs, dtype=torch.int32),
        'm': torch.rand(outputs) * 2.0**-14,
        'b': torch.randn(outputs),
    }
    conv = ir.Conv('y', S8, 'x', 'w', 'e', 'm', 'b', activation='leaky_relu', slope=0.1, **geometry)
    return ir.Int8Graph((ir.Input('x', kind), conv), ir.Ref('y'), constants)


def check(graph, x):
    found = build_backend('int_mm', graph).run(x)
    assert torch.equal(found, build_backend('reference', graph).run(x))


@pytest.mark.parametrize('limit', [1, 1000, 3000, 20000, 1 << 28])
@pytest.mark.parametrize('groups', [1, 2])
def test_patches_are_multiplied_piece_by_piece(monkeypatch, products, limit, groups):
    """At most so many bytes, but at least one row of results."""
    torch.manual_seed(limit)
    monkeypatch.setattr(int_mm, 'MAX_BYTES', limit)
    graph = graph_of(
        U8,
        torch.randint(-128, 128, (10, 6 // groups, 3, 3)),
        padding=(1, 1),
        stride=(1, 2),
        groups=groups,
    )
    check(graph, torch.randint(0, 256, (5, 6, 11, 40), dtype=torch.uint8))
    depth, columns, rows = (56 if groups == 1 else 32), 20, 11
    assert all(m * k <= max(limit, columns * k) for m, k, _ in products)
    assert {k for _, k, _ in products} == {depth}
    sums = sum(m for m, _, _ in products)
    assert sums == groups * 5 * rows * columns
    assert (len(products) == groups) == (limit >= 5 * rows * columns * depth)


@pytest.mark.parametrize('kind', [S8, U8], ids=['s8', 'u8'])
def test_padding_is_zero_and_every_code_counts(kind):
    """A shifted uint8 code 0 is -128, the padding beside it, too."""
    torch.manual_seed(0)
    weight = torch.tensor([-128, 127])[torch.randint(0, 2, (9, 1, 3, 3))]
    dtype = torch.int8 if kind.signed else torch.uint8
    x = torch.arange(256).to(dtype).view(1, 1, 8, 32)
    check(graph_of(kind, weight, padding=(2, 2)), x)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel', [1, 3])
def test_batches_of_nothing_and_layouts(layout, kernel):
    graph = graph_of(U8, torch.randint(-128, 128, (8, 16, kernel, kernel)), padding=(1, 1))
    for count in (0, 3):
        x = torch.randint(0, 256, (count, 16, 5, 6), dtype=torch.uint8)
        check(graph, x.to(memory_format=layout))


@pytest.mark.parametrize('kind', [S8, U8], ids=['s8', 'u8'])
def test_a_linear_layer_of_no_rows(kind):
    conv = graph_of(kind, torch.ones(3, 5, 1, 1))
    constants = {**conv.constants, 'w': conv.constants['w'].flatten(1)}
    linear = ir.Linear('y', S8, 'x', 'w', 'e', 'm', 'b')
    graph = ir.Int8Graph((conv.nodes[0], linear), ir.Ref('y'), constants)
    x = torch.zeros(0, 5, dtype=torch.int8 if kind.signed else torch.uint8)
    assert build_backend('int_mm', graph).run(x).shape == (0, 3)
    check(graph, x)


@pytest.mark.parametrize('channels', [15, 17, 40])
def test_other_channels_than_the_weights_have_are_refused(channels):
    graph = graph_of(S8, torch.ones(8, 16, 1, 1))
    with pytest.raises(ir.GraphError, match=f'found codes of depth {channels}, wanted 16'):
        build_backend('int_mm', graph).run(torch.zeros(1, channels, 5, 5, dtype=torch.int8))


def test_an_input_smaller_than_the_kernel_is_refused():
    graph = graph_of(S8, torch.ones(8, 16, 3, 3), padding=(1, 0))
    with pytest.raises(ir.GraphError, match='y: found an input of 4x2 with its padding, wanted'):
        build_backend('int_mm', graph).run(torch.zeros(1, 16, 2, 2, dtype=torch.int8))


def test_every_code_of_a_detector():
    model, quantized, _ = quantized_detector('mobilenetv2')
    Comparison(model, quantized, 'int_mm').check((1, 32, 64), runs=1)


def test_an_inexact_product_is_refused(monkeypatch):
    monkeypatch.setattr(torch, '_int_mm', lambda a, b: (a.float() @ b.float()).int() - 1)
    int_mm._why_unavailable.cache_clear()
    assert 'torch._int_mm is not exact on cpu; use' in int_mm.IntMmBackend.unavailable('cpu')
    int_mm._why_unavailable.cache_clear()
