"""``int8_conv2d`` as an operator of torch: values, refusals, tracing, and the kernels emulated."""

import pytest
import torch
from torch.nn import functional as F

from mmclipq.errors import ClipQError
from mmclipq.ops.int8_conv import _node, int8_conv2d, launch

OPTIONS = [
    dict(),
    dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), activation='leaky_relu', slope=0.125),
    dict(padding=(1, 1), activation='relu', exponent=1, signed=False),
    dict(padding=(1, 1), activation='relu6', exponent=2),
    dict(padding=(1, 1), groups=4, exponent=0),
]


def operands(groups=1, signed=True, channels=12, outputs=20):
    g = torch.Generator().manual_seed(channels)
    low, high = (-128, 128) if signed else (0, 256)
    x = torch.randint(low, high, (2, channels, 7, 8), generator=g)
    x = x.to(torch.int8 if signed else torch.uint8)
    w = torch.randint(-128, 128, (outputs, channels // groups, 3, 3), generator=g).to(torch.int8)
    m = torch.rand(outputs, generator=g) * 2.0**-18
    return x, w, m, torch.randn(outputs, generator=g)


def test_literal_values():
    x = torch.tensor([[[[1, -2], [3, 127]]]], dtype=torch.int8)
    w = torch.tensor([[[[2]]], [[[-128]]]], dtype=torch.int8)
    m, b = torch.tensor([0.25, 0.5]), torch.tensor([1.0, 0.0])
    values = int8_conv2d(x, w, m, b)
    assert values.tolist() == [[[[1.5, 0.0], [2.5, 64.5]], [[-64.0, 128.0], [-192.0, -8128.0]]]]
    codes = int8_conv2d(x, w, m, b, exponent=7)  # steps of one, ties to even
    assert codes.dtype == torch.int8
    assert codes.tolist() == [[[[2, 0], [2, 64]], [[-64, 127], [-128, -128]]]]
    assert codes.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('signed', [True, False])
def test_sums_are_exact(options, signed):
    x, w, m, b = operands(options.get('groups', 1), signed)
    found = int8_conv2d(x, w, m, b, **options)
    geometry = {k: options[k] for k in ('stride', 'padding', 'dilation', 'groups') if k in options}
    v = F.conv2d(x.double(), w.double(), **geometry).float() * m.view(-1, 1, 1)
    v = v + b.view(-1, 1, 1)
    v = {
        'leaky_relu': lambda v: F.leaky_relu(v, 0.125), 'relu': F.relu, 'relu6': F.relu6
    }.get(options.get('activation'), lambda v: v)(v)  # fmt: skip
    if 'exponent' in options:
        unsigned = not options.get('signed', True)
        scaled = v * 2.0 ** ((8 if unsigned else 7) - options['exponent'])
        v = scaled.round().clamp(*((0, 255) if unsigned else (-128, 127)))
    assert torch.equal(found.float(), v)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize(('channels', 'outputs'), [(12, 20), (4, 4), (32, 48)])
def test_kernels_give_the_same(emulated, options, signed, channels, outputs):
    tensors = operands(options.get('groups', 1), signed, channels, outputs)
    found = launch(emulated, *tensors, _node(**options))
    wanted = int8_conv2d(*tensors, **options)
    assert found.stride() == wanted.stride()
    assert torch.equal(found, wanted)


def test_torch_can_trace_it():
    x, w, m, b = operands()
    options = dict(padding=(1, 1), exponent=0)
    compiled = torch.compile(
        lambda x: int8_conv2d(x, w, m, b, **options) + 1, backend='eager', fullgraph=True
    )
    assert torch.equal(compiled(x), int8_conv2d(x, w, m, b, **options) + 1)
    torch.library.opcheck(
        torch.ops.mmclipq.int8_conv2d.default, (x, w, m, b), options,
        test_utils=('test_schema', 'test_faketensor'),
    )  # fmt: skip


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: dict(x=t[0].float()), r'found x of torch.float32 \(2, 12, 7, 8\), wanted int8'),
        (lambda t: dict(weight=t[1].int()), 'found weight of torch.int32 .*, wanted int8'),
        (
            lambda t: dict(weight=t[1][:, :5]),
            r'found weight \(20, 5, 3, 3\) in 1 groups, wanted 12',
        ),
        (lambda t: dict(bias=t[3][:3]), r'found bias of torch.float32 \(3,\), wanted float32 of K'),
        (lambda t: dict(activation='gelu'), "found activation 'gelu', wanted one of"),
        (lambda t: dict(x=t[0][:, :, :2]), 'found an input of 2x8, wanted one that its kernel'),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    tensors = operands()
    given = dict(zip(('x', 'weight', 'multiplier', 'bias'), tensors, strict=True))
    with pytest.raises((ClipQError, RuntimeError), match=message):
        int8_conv2d(**given | change(tensors))
