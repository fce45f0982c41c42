"""Lowering: exponents within the clip ranges, signs, epilogue constants, islands that execute."""

import copy

import pytest
import torch
from mmcv.cnn import ConvWS2d
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import nn
from torch.nn import functional as F

from mmclipq.backends import build_backend
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.lowering.capture import CaptureError
from mmclipq.lowering.norms import fold_norm

IMAGES = [torch.randn(2, 4, 9, 11, generator=torch.Generator().manual_seed(i)) for i in range(2)]


class Net(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def nodes_of(graph, kind):
    return [node for node in graph.nodes if type(node) is kind]


def node_named(graph, name):
    (node,) = [node for node in graph.nodes if node.name == name]
    return node


@pytest.mark.parametrize('method', ['mse', 'max'])
@pytest.mark.parametrize('limit', [2.0**-4, 1.0, 2.0**6])
def test_exponents_stay_within_the_clip_ranges(lowered, method, limit):
    net = Net(lambda m, x: m.c(F.relu(m.b(m.a(x)))))
    graph = lowered(net, IMAGES, method, input_range=limit, weight_range=2.0**-3)
    exponent = torch.tensor(limit).log2().int().item()
    for node in graph.products():
        assert graph.tensors[node.x].exponent <= exponent
        assert int(graph.constants[node.exponents].max()) <= -3
    assert not nodes_of(graph, ir.Requantize)


def test_residual_beside_a_clipped_input_is_not_clipped(lowered):
    net = Net(lambda m, x: m.c(m.b(y := m.a(x * 50)) + y))
    graph = lowered(net, IMAGES, 'max', rules=[dict(pattern='b', input_range=0.5)])
    (clip,) = nodes_of(graph, ir.Requantize)
    residual, reader = node_named(graph, 'a'), node_named(graph, 'b')
    assert residual.type.exponent > -1
    assert (clip.name, clip.x, clip.type.exponent) == ('a.clip-1', 'a', -1)
    assert (reader.x, reader.residual) == ('a.clip-1', 'a')


def test_own_input_as_residual_is_not_clipped(lowered):
    net = Net(lambda m, x: m.c(m.b(y := m.a(x * 50)) + y) + m.b(F.relu(y)))
    net.function = lambda m, x: m.b(y := m.a(x * 50)).add(y)
    graph = lowered(net, IMAGES, 'max', rules=[dict(pattern='b', input_range=0.5)])
    assert node_named(graph, 'a').type.exponent > -1
    assert node_named(graph, 'b').residual == 'a'
    assert node_named(graph, 'b').x == 'a.clip-1'


def test_tensor_of_two_layers_serves_each_within_its_bound(lowered):
    net = Net(lambda m, x: (m.b(y := m.a(x * 50)), m.c(y)))
    rules = [dict(pattern='b', input_range=1), dict(pattern='c', input_range=2)]
    graph = lowered(net, IMAGES, 'max', rules=rules)
    assert graph.tensors['a'].exponent == 1
    assert graph.tensors[node_named(graph, 'b').x].exponent == 0
    assert node_named(graph, 'c').x == 'a'


@pytest.mark.parametrize('non_negative', [False, True])
def test_uint8_where_nothing_is_negative(lowered, non_negative):
    images = [image.abs() if non_negative else image for image in IMAGES]
    net = Net(lambda m, x: m.c(F.leaky_relu(m.b(F.relu(m.a(x))))))
    graph = lowered(net, images, 'mse', non_negative)
    signs = [graph.tensors[node.x].signed for node in graph.products()]
    assert signs == [not non_negative, False, False]
    offsets = [graph.tensors[node.x].offset > 0 for node in graph.products()]
    assert offsets == [False, False, True]  # what LeakyReLU leaves below zero


def test_tied_tensors_share_the_range_and_sign(lowered):
    head = nn.Conv2d(8, 2, 1)
    net = Net(lambda m, x: m.head(torch.cat([F.relu(m.a(x * 9)), m.b(x)], 1)), head=head)
    graph = lowered(net, IMAGES, 'max')
    kinds = {name: graph.tensors[name] for name in ('a', 'b', 'cat')}
    assert len(set(kinds.values())) == 1
    assert kinds['cat'].signed or kinds['cat'].offset
    net.function = lambda m, x: m.head(torch.cat([F.relu(m.a(x * 9)), F.relu(m.b(x))], 1))
    graph = lowered(net, IMAGES, 'max')
    assert not graph.tensors['cat'].signed
    assert graph.tensors['a'] == graph.tensors['b'] == graph.tensors['cat']


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('bias', [True, False])
def test_fold_norm_equals_the_float_norm(randomise, affine, bias):
    torch.manual_seed(1)
    layer, norm = nn.Conv2d(3, 255, 3, bias=bias), nn.BatchNorm2d(255, eps=1e-3, affine=affine)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(1e-4, 3)
        if affine:
            norm.weight.normal_()
            norm.bias.normal_()
    x = torch.randn(2, 3, 8, 8)
    scale, shift = fold_norm(layer, norm)
    assert scale.dtype == shift.dtype == torch.float64
    double = nn.Sequential(layer, norm).double().eval()
    with torch.no_grad():
        wanted = double(x.double())
        sums = F.conv2d(x.double(), layer.weight)
    found = sums * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    # float64 on both sides: only the order of the operations differs.
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    layer.float(), norm.float()


@pytest.mark.parametrize('bias', [True, False])
def test_without_norm_the_bias_is_the_shift(bias):
    layer = nn.Conv2d(3, 5, 1, bias=bias)
    scale, shift = fold_norm(layer, None)
    assert torch.equal(scale, torch.ones(5, dtype=torch.float64))
    wanted = layer.bias.detach().double() if bias else torch.zeros(5, dtype=torch.float64)
    assert torch.equal(shift, wanted)


def test_constants_of_a_layer(lowered):
    norm = nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.3]))
        norm.running_var.fill_(4.0 - norm.eps)
    net = Net(lambda m, x: m.norm(m.a(x)), norm=norm)
    graph = lowered(net, IMAGES)
    (node,) = graph.products()
    codes, exponents = graph.constants['a.weight'], graph.constants['a.weight_exponents']
    steps = torch.ldexp(torch.ones(4, dtype=torch.float64), exponents - 7)
    rounded = codes.double() * steps.view(-1, 1, 1, 1)
    wanted = net.a.weight.detach().double()
    inside = codes.abs() < 127
    assert ((rounded - wanted).abs() <= steps.view(-1, 1, 1, 1) / 2)[inside].all()
    step = 2.0 ** graph.tensors[node.x].step_exponent
    scale, _ = fold_norm(net.a, norm)
    assert torch.equal(graph.constants[node.multiplier], (steps * step * scale).float())
    assert graph.constants[node.multiplier].tolist()[2] == 0


def test_shared_layer_is_stored_once(lowered):
    graph = lowered(Net(lambda m, x: m.a(F.relu(m.a(x)))), IMAGES)
    first, second = graph.products()
    assert (first.weight, second.weight) == ('a.weight', 'a.weight')
    assert first.multiplier != second.multiplier


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_bad_weights_name_the_layer(trace, value):
    from mmclipq.lowering.part import lower

    net = Net(lambda m, x: m.b(m.a(x)))
    module = trace(net)
    net.b.weight.data[1, 2, 0, 0] = value
    with pytest.raises(ClipQError, match=r'b\.weight: found'):
        lower(module, IMAGES)


def test_bad_norm_names_its_layer(lowered):
    net = Net(lambda m, x: m.norm(m.b(m.a(x))), norm=nn.BatchNorm2d(4))
    net.norm.running_mean[2] = float('nan')
    with pytest.raises(ClipQError, match=r'b\.bias: found 1 NaN'):
        lowered(net, IMAGES)


def test_bad_images_and_no_images(lowered):
    net = Net(lambda m, x: m.a(x))
    bad = IMAGES[0].clone()
    bad[0, 0, 0, 0] = float('nan')
    with pytest.raises(ClipQError, match='^x: found 1 NaN .* check the checkpoint$'):
        lowered(net, [bad])
    with pytest.raises(ClipQError, match='calibration: found no images'):
        lowered(net, [])


@pytest.mark.parametrize(
    ('forward', 'message'),
    [
        (lambda m, x: m.b(torch.bernoulli(m.a(x))), 'a call of bernoulli'),
        (lambda m, x: m.b(m.a(x).cummax(1)[0]), "a call of method 'cummax'"),
        (lambda m, x: m.b(m.a(x).mT.contiguous()), "a read of attribute 'mT'"),
    ],
)
def test_call_that_no_island_may_make(lowered, forward, message):
    with pytest.raises(CaptureError, match=message):
        lowered(Net(forward), [image[:, :, :9, :9] for image in IMAGES])


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.weight = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x):
        return self.conv(x) * self.weight


@pytest.mark.parametrize(
    'forward',
    [
        lambda m, x: m.b(F.silu(m.a(x))),
        lambda m, x: m.b(m.a(x)[:, :, ::2, 1:]),
        lambda m, x: m.s(F.relu(m.a(x))),
        lambda m, x: m.b(m.a(x).view(x.size(0), 4, x.shape[2], -1)),
        lambda m, x: torch.cat([m.a(x), m.b(x)], dim=-1).softmax(dim=-1),
        lambda m, x: (m.g(m.a(x)), {'k': [m.b(F.relu(m.a(x)))]}),
    ],
)
def test_float_islands_execute_close_to_float(lowered, forward):
    """Coarse on purpose: it finds islands that read the wrong tensor, not rounding errors."""
    net = Net(forward, s=Scale(), g=nn.GroupNorm(2, 4))
    graph = lowered(net, IMAGES)
    with torch.no_grad():
        wanted = net(IMAGES[0])
    found = build_backend('reference', graph, net).run(IMAGES[0])
    if not isinstance(wanted, torch.Tensor):
        assert isinstance(found, tuple)
        assert list(found[1]) == ['k']
        found, wanted = found[1]['k'][0], wanted[1]['k'][0]
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize(
    'layer',
    [
        Conv2dAdaptivePadding(4, 8, 3, stride=2),
        Conv2dAdaptivePadding(4, 4, 5, groups=4),
        ConvWS2d(4, 8, 3, padding=1),
        nn.ConvTranspose2d(4, 8, 2, stride=2),
        nn.ConvTranspose2d(4, 8, 3, 2, 1, output_padding=1, groups=2),
    ],
    ids=['adaptive', 'adaptive depthwise', 'standardized', 'transposed', 'transposed groups'],
)
def test_other_convolutions_become_products(lowered, layer):
    """The integer graph's values lie within the rounding of the float layer's."""
    net = Net(lambda m, x: F.silu(m.extra(m.a(x))), extra=copy.deepcopy(layer))
    images = [torch.randn(2, 4, 13, 18, generator=torch.Generator().manual_seed(3))]
    graph = lowered(net, images)
    assert not graph.islands
    with torch.no_grad():
        wanted = net(images[0])
    found = build_backend('reference', graph).run(images[0])
    assert found.shape == wanted.shape
    assert (found - wanted).square().mean() < 2e-3 * wanted.square().mean()
