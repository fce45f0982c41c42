"""Layers that kernels of our own run where oneDNN could, at shapes that fill no block."""

import pytest
import torch

from mmclipq.backends import build_backend
from mmclipq.graph import ir
from mmclipq.ops.cpu import library

REASON = library.why_unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f'no CPU operators: {REASON}')

S8, U8, MOVED = ir.TensorType(0), ir.TensorType(0, False), ir.TensorType(0, False, 32)


def equal_codes(x, channels, outputs, size, out=MOVED, residual=None, largest=127, **options):
    """Codes of one layer of random codes on the CPU and by the reference are the same."""
    kernel = options.pop('kernel', 3)
    generator = torch.Generator().manual_seed(channels * outputs)
    w = torch.randint(-largest, largest + 1, (outputs, channels, kernel, kernel),
                      generator=generator)  # fmt: skip
    spread = 4 / (channels**0.5 * kernel * largest * 74)
    constants = {
        'w': w.to(torch.int8),
        'e': torch.zeros(outputs, dtype=torch.int32),
        'm': torch.rand(outputs, generator=generator) * spread,
        'b': torch.randn(outputs, generator=generator) * 0.1,
    }
    node = ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', **options)
    if residual is not None:
        node = ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', residual='r', **options)
    nodes = [ir.Input('i', ir.FLOAT), ir.Quantize('x', x, 'i')]
    inputs = [torch.rand(2, channels, *size, generator=generator) * 2.4 - 1.2]
    if residual is not None:
        nodes += [ir.Input('j', ir.FLOAT), ir.Quantize('r', residual, 'j')]
        inputs.append(torch.rand(2, outputs, *size, generator=generator) * 2 - 1)
    graph = ir.Int8Graph((*nodes, node), ir.Ref('y'), constants)
    found, expected = (
        build_backend(name, graph).run(*inputs) if not out.is_codes
        else build_backend(name, graph).codes(*inputs)['y'] for name in ('cpu', 'reference')
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert len(expected.unique()) > 16


@pytest.mark.parametrize('x', [S8, U8, MOVED], ids=str)
@pytest.mark.parametrize(
    ('activation', 'slope', 'residual', 'last', 'out'),
    [
        ('relu', 0.0, None, False, MOVED),
        ('leaky_relu', 0.1, S8, True, S8),
        ('leaky_relu', 0.1, MOVED, False, U8),
        ('relu6', 0.0, None, False, U8),
        ('identity', 0.0, None, False, ir.FLOAT),
        ('silu', 0.0, MOVED, True, MOVED),
        ('silu', 0.0, S8, False, S8),
        ('silu', 0.0, None, False, ir.FLOAT),
        ('hardswish', 0.0, None, False, MOVED),
    ],
)
@pytest.mark.parametrize(('channels', 'outputs'), [(64, 64), (67, 83)])
def test_3x3_kernels_of_many_channels(x, activation, slope, residual, last, out, channels, outputs):
    """Large weights, whose products stand for 25 bits of the sums, at full and at cut tiles."""
    for size in ((8, 12), (7, 20)):
        equal_codes(
            x, channels, outputs, size, out, residual, padding=(1, 1), activation=activation,
            slope=slope, residual_last=last,
        )  # fmt: skip


@pytest.mark.parametrize('x', [S8, U8, MOVED], ids=str)
@pytest.mark.parametrize(
    ('channels', 'outputs', 'size', 'options'),
    [
        (3, 12, (13, 11), dict(stride=(2, 2), padding=(1, 1))),
        (12, 24, (9, 7), dict(padding=(1, 1))),
        (7, 49, (5, 5), dict(kernel=1)),
        (32, 33, (1, 1), dict(kernel=1)),
        (48, 100, (6, 9), dict(kernel=1)),
        (96, 17, (9, 8), dict(kernel=1, stride=(2, 2))),
        (10, 70, (12, 12), dict(dilation=(2, 3), padding=(2, 3))),
        (5, 16, (9, 30), dict(kernel=5, padding=(2, 2), stride=(1, 2))),
        (130, 40, (3, 3), {}),
        (24, 24, (40, 40), dict(padding=(1, 1))),
    ],
)
def test_smooth_layers(x, channels, outputs, size, options):
    equal_codes(x, channels, outputs, size, activation='silu', **options)


@pytest.mark.parametrize('x', [S8, U8, MOVED], ids=str)
@pytest.mark.parametrize('kernel', [1, 3])
def test_extremes(x, kernel):
    """All weights and codes at their limits, in sums of more than 24 bits."""
    for sign in (-128, 127):
        constants = {
            'w': torch.full((48, 520, kernel, kernel), sign, dtype=torch.int8),
            'e': torch.zeros(48, dtype=torch.int32),
            'm': torch.full((48,), 2.0**-26),
            'b': torch.linspace(-1, 1, 48),
        }
        padding = (kernel // 2, kernel // 2)
        node = ir.Conv('y', S8, 'x', 'w', 'e', 'm', 'b', 'silu', padding=padding)
        nodes = (ir.Input('i', ir.FLOAT), ir.Quantize('x', x, 'i'), node)
        graph = ir.Int8Graph(nodes, ir.Ref('y'), constants)
        image = torch.where(torch.arange(64).view(1, 1, 8, 8) % 3 == 0, -9.0, 9.0)
        image = image.expand(1, 520, 8, 8).contiguous()
        found, expected = (
            build_backend(name, graph).codes(image)['y'] for name in ('cpu', 'reference')
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize('x', [S8, U8, MOVED], ids=str)
@pytest.mark.parametrize('outputs', [12, 24])
def test_pixels_that_share_vectors(x, outputs):
    """Few channels of several pixels lie in one vector: at cut rows, with residuals, as float32."""
    for size in ((1, 1), (3, 5), (2, 49)):
        options = dict(activation='silu', kernel=3, padding=(1, 1))
        equal_codes(x, 12, outputs, size, residual=MOVED, **options)
        equal_codes(x, 12, outputs, size, residual=S8, residual_last=True, out=S8, **options)
        equal_codes(x, 12, outputs, size, out=ir.FLOAT, **options)


@pytest.mark.parametrize('outputs', [(12, 24), (24, 12), (24, 24)])
def test_pixels_that_share_vectors_in_parts_of_a_result(outputs):
    """What one layer writes leaves the channels beside its own as they are."""
    generator = torch.Generator().manual_seed(0)
    constants, nodes = {}, [ir.Input('i', ir.FLOAT), ir.Quantize('x', U8, 'i')]
    for name, count in zip('ab', outputs, strict=True):
        constants |= {
            f'w{name}': torch.randint(-90, 90, (count, 8, 3, 3), generator=generator).to(
                torch.int8
            ),
            f'e{name}': torch.zeros(count, dtype=torch.int32),
            f'm{name}': torch.rand(count, generator=generator) * 1e-4,
            f'b{name}': torch.randn(count, generator=generator) * 0.1,
        }
        names = (f'{kind}{name}' for kind in 'wemb')
        nodes.append(ir.Conv(name, MOVED, 'x', *names, 'silu', padding=(1, 1)))
    graph = ir.Int8Graph(
        (*nodes, ir.Concat('y', MOVED, ('a', 'b'))), ir.Ref('y'), constants
    )  # fmt: skip
    image = torch.rand(2, 8, 7, 9, generator=generator)
    found, expected = (
        build_backend(name, graph).codes(image)['y'] for name in ('cpu', 'reference')
    )
    assert torch.equal(found, expected)
    assert len(expected.unique()) > 64


@pytest.mark.parametrize('x', [S8, U8, MOVED], ids=str)
@pytest.mark.parametrize('weight', [-128, 127])
def test_extremes_of_few_products(x, weight):
    """All weights at their limit, which few enough channels leave to the quicker products."""
    constants = {
        'w': torch.full((64, 64, 3, 3), weight, dtype=torch.int8),
        'e': torch.zeros(64, dtype=torch.int32),
        'm': torch.full((64,), 2.0**-23),
        'b': torch.linspace(-1, 1, 64),
    }
    node = ir.Conv('y', S8, 'x', 'w', 'e', 'm', 'b', 'silu', padding=(1, 1))
    graph = ir.Int8Graph(
        (ir.Input('i', ir.FLOAT), ir.Quantize('x', x, 'i'), node), ir.Ref('y'), constants
    )  # fmt: skip
    places = torch.arange(144).view(1, 1, 12, 12)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(1, 64, 12, 12, generator=generator) < 0.5
    for chosen in (places % 2 == 0, places % 5 < 3, places >= 0, random):
        image = torch.where(chosen, -9.0, 9.0).expand(1, 64, 12, 12).contiguous()
        found, expected = (
            build_backend(name, graph).codes(image)['y'] for name in ('cpu', 'reference')
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize('channels', [3, 4])
def test_images_and_their_slices(channels):
    """Codes of images that fill several pieces, every second row and column, windows of them."""
    nodes = (
        ir.Input('i', ir.FLOAT),
        ir.Quantize('x', MOVED, 'i'),
        ir.Slice('s', MOVED, 'x', (1, 0), (2, 2)),
        ir.MaxPool('p', MOVED, 's', (5, 3), (1, 2), (2, 1), (1, 2)),
    )
    graph = ir.Int8Graph(nodes, (ir.Ref('x'), ir.Ref('s'), ir.Ref('p')), {})
    image = torch.rand(2, channels, 41, 67, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.35
    found, expected = (build_backend(name, graph).codes(image) for name in ('cpu', 'reference'))
    for name in 'xsp':
        assert torch.equal(found[name], expected[name])
        assert len(expected[name].unique()) > 32
