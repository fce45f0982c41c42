"""Which nodes of small networks fuse, and which become float steps for which reason."""

import operator

import pytest
import torch
from mmcv.cnn import Scale
from mmcv.cnn.bricks import HSigmoid, HSwish, Swish
from torch import fx, nn
from torch.nn import functional as F

from mmclipq.lowering.plan import make_plan, tied_groups
from mmclipq.lowering.tracer import Tracer
from mmclipq.prepare import prepare_model


def conv(inputs=4, outputs=4, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Net(nn.Module):
    """Two convs, two norms and a function of both that a test gives."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.a, self.b = conv(), conv()
        self.norm, self.other_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def kinds(plan):
    return [unit.kind for unit in plan.units]


def reasons(plan):
    return {u.path: u.options['reason'] for u in plan.units if u.kind == 'float'}


def unit_named(plan, path):
    (unit,) = [unit for unit in plan.units if unit.path == path]
    return unit


@pytest.mark.parametrize(
    ('forward', 'layers', 'wanted'),
    [
        (lambda m, x: m.norm(m.a(x)), {}, ('identity', 0.0)),
        (lambda m, x: m.act(m.norm(m.a(x))), dict(act=nn.ReLU()), ('relu', 0.0)),
        (lambda m, x: m.act(m.norm(m.a(x))), dict(act=nn.ReLU6()), ('relu6', 0.0)),
        (lambda m, x: m.act(m.norm(m.a(x))), dict(act=nn.LeakyReLU(0.1)), ('leaky_relu', 0.1)),
        (lambda m, x: F.leaky_relu(m.norm(m.a(x)), 0.2), {}, ('leaky_relu', 0.2)),
        (
            lambda m, x: F.leaky_relu(m.norm(m.a(x)), negative_slope=0.3, inplace=True),
            {},
            ('leaky_relu', 0.3),
        ),
        (lambda m, x: F.leaky_relu(m.norm(m.a(x))), {}, ('leaky_relu', 0.01)),
        (lambda m, x: F.relu(m.norm(m.a(x)), inplace=True), {}, ('relu', 0.0)),
        (lambda m, x: F.relu6(m.norm(m.a(x))), {}, ('relu6', 0.0)),
        (lambda m, x: m.norm(m.a(x)).relu_(), {}, ('relu', 0.0)),
        (lambda m, x: m.drop(m.norm(m.drop(m.a(x)))).relu(), dict(drop=nn.Dropout()), ('relu', 0)),
    ],
)
def test_conv_norm_activation_is_one_unit(plan, forward, layers, wanted):
    found = plan(Net(forward, **layers))
    assert kinds(found) == ['input', 'conv']
    unit = found.units[1]
    assert isinstance(unit.norm, nn.BatchNorm2d)
    assert (unit.options['activation'], unit.options['slope'] if wanted[1] else 0.0) == wanted
    assert not unit.wants_codes
    assert found.units[0].wants_codes


@pytest.mark.parametrize(
    ('forward', 'last', 'activation'),
    [
        (lambda m, x: F.relu(m.norm(m.b(m.a(x))) + x), False, 'relu'),
        (lambda m, x: F.relu(x + m.b(m.a(x))), False, 'relu'),
        (lambda m, x: torch.add(x, m.b(m.a(x))), False, 'identity'),
        (lambda m, x: m.b(m.a(x)).add_(x), False, 'identity'),
        (lambda m, x: operator.iadd(F.relu(m.b(m.a(x))), x), True, 'relu'),
        (lambda m, x: F.leaky_relu(m.norm(m.b(m.a(x)))) + x, True, 'leaky_relu'),
    ],
)
def test_residual_fuses_before_and_after_the_activation(plan, forward, last, activation):
    found = plan(Net(forward))
    assert kinds(found) == ['input', 'conv', 'conv']
    unit = unit_named(found, 'b')
    assert [operand.path for operand in unit.operands] == ['a', 'x']
    assert unit.options['residual_last'] is last
    assert unit.options['activation'] == activation


def test_nothing_fuses_after_a_residual_that_came_last(plan):
    found = plan(Net(lambda m, x: F.relu(F.relu(m.a(x)) + x)))
    assert kinds(found) == ['input', 'conv', 'float']
    assert reasons(found) == {'relu_1': 'relu_1 is read by float steps only'}


def test_downsample_block_fuses_one_of_two_convs(plan):
    found = plan(Net(lambda m, x: F.relu(m.norm(m.a(x)) + m.other_norm(m.b(x)))))
    assert kinds(found) == ['input', 'conv', 'conv']
    first, second = found.units[1:]
    # The one that adds stands after the other, whichever the source names first.
    assert (first.path, second.path) == ('b', 'a')
    assert second.operands[1] is first
    assert first.norm is not None
    assert first.options['activation'] == 'identity'
    assert second.options['activation'] == 'relu'


def test_conv_with_two_readers_does_not_fuse(plan):
    def forward(m, x):
        y = m.a(x)
        return m.b(F.relu(y) + y)

    found = plan(Net(forward))
    assert kinds(found) == ['input', 'conv', 'activation', 'add', 'conv']
    assert not reasons(found)
    assert unit_named(found, 'a').options['activation'] == 'identity'


def test_conv_that_is_also_an_output_does_not_fuse(plan):
    def forward(m, x):
        y = m.a(x)
        return y, F.relu(y)

    assert kinds(plan(Net(forward))) == ['input', 'conv', 'float']


@pytest.mark.parametrize(
    ('forward', 'wanted'),
    [
        (lambda m, x: m.a(m.norm(x)), ['input', 'affine', 'conv']),
        (lambda m, x: m.norm(F.relu(m.a(x))), ['input', 'conv', 'affine']),
        (lambda m, x: m.other_norm(m.norm(m.a(x))), ['input', 'conv', 'affine']),
        (lambda m, x: F.relu(m.norm(m.a(x) + x)), ['input', 'conv', 'affine']),
    ],
)
def test_a_norm_behind_no_product_stands_alone(plan, forward, wanted):
    found = plan(Net(forward))
    assert kinds(found) == wanted
    assert not reasons(found)


def test_a_second_activation_stands_alone(plan):
    found = plan(Net(lambda m, x: m.b(F.relu6(F.relu(m.a(x))))))
    assert kinds(found) == ['input', 'conv', 'activation', 'conv']
    assert unit_named(found, 'relu6').options == {'activation': 'relu6'}


@pytest.mark.parametrize(
    ('forward', 'layers', 'wanted'),
    [
        (lambda m, x: m.s(m.a(x)), dict(s=nn.SiLU()), {'activation': 'silu'}),
        (lambda m, x: m.s(m.a(x)), dict(s=Swish()), {'activation': 'silu'}),
        (lambda m, x: F.silu(m.norm(m.a(x))), {}, {'activation': 'silu'}),
        (lambda m, x: m.s(m.a(x)), dict(s=HSwish()), {'activation': 'hardswish'}),
        (lambda m, x: m.s(m.a(x)), dict(s=HSigmoid()), {'activation': 'hardsigmoid'}),
        (lambda m, x: m.a(x).sigmoid(), {}, {'activation': 'sigmoid'}),
        (lambda m, x: torch.exp(m.a(x)), {}, {'activation': 'exp'}),
        (lambda m, x: F.gelu(m.a(x)), {}, {'activation': 'gelu'}),
        (lambda m, x: F.gelu(m.a(x), approximate='tanh'), {}, {'activation': 'gelu_tanh'}),
        (lambda m, x: m.s(m.a(x)), dict(s=nn.GELU('tanh')), {'activation': 'gelu_tanh'}),
        (lambda m, x: F.elu(m.a(x), 0.5), {}, {'activation': 'elu', 'slope': 0.5}),
        (lambda m, x: m.s(m.a(x)), dict(s=nn.ELU(2.0)), {'activation': 'elu', 'slope': 2.0}),
        (lambda m, x: m.s(m.a(x)), dict(s=nn.Mish()), {'activation': 'mish'}),
        (lambda m, x: m.s(m.a(x)), dict(s=nn.PReLU(init=0.5)), {'activation': 'leaky_relu',
                                                                'slope': 0.5}),
    ],
)  # fmt: skip
def test_smooth_activations_fuse(plan, forward, layers, wanted):
    found = plan(Net(forward, **layers))
    assert kinds(found) == ['input', 'conv']
    options = found.units[1].options
    assert {key: options[key] for key in wanted} == wanted


def test_hard_sigmoid_of_another_form_is_an_island(plan):
    found = plan(Net(lambda m, x: m.b(m.s(m.a(x))), s=HSigmoid(bias=1.0, divisor=2.0)))
    assert reasons(found) == {'s': 'HSigmoid has no int8 form'}


def test_a_learned_scale_fuses(plan):
    found = plan(Net(lambda m, x: m.s(m.norm(m.a(x))), s=Scale(0.25)))
    assert kinds(found) == ['input', 'conv']
    assert found.units[1].scale == 0.25


def test_gate_of_squeeze_and_excitation(plan):
    def forward(m, x):
        y = F.relu(m.a(x))
        gate = torch.sigmoid(m.c(m.pool(y)))
        return m.b(y * gate)

    found = plan(Net(forward, c=conv(kernel=1), pool=nn.AdaptiveAvgPool2d(1)))
    assert kinds(found) == ['input', 'conv', 'avg_pool', 'conv', 'mul', 'conv']
    assert unit_named(found, 'mul').non_negative
    assert not reasons(found)


@pytest.mark.parametrize(
    ('pool', 'options'),
    [
        (lambda m, y: F.adaptive_avg_pool2d(y, (1, 1)), {}),
        (lambda m, y: y.mean((2, 3), keepdim=True), {}),
        (lambda m, y: torch.mean(y, dim=[-1, -2], keepdim=True), {}),
        (lambda m, y: F.avg_pool2d(y, 2), dict(
            kernel=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=False, count_padding=True)),
        (lambda m, y: m.pool(y), dict(
            kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil_mode=True, count_padding=False)),
    ],
)  # fmt: skip
def test_average_pooling(plan, pool, options):
    layer = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
    found = plan(Net(lambda m, x: m.b(pool(m, m.a(x))), pool=layer))
    (unit,) = [unit for unit in found.units if unit.kind == 'avg_pool']
    assert unit.options == options


def test_normalization_takes_the_activation_behind_it(plan):
    found = plan(Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))), n=nn.GroupNorm(2, 4)))
    assert kinds(found) == ['input', 'conv', 'group_norm', 'conv']
    assert unit_named(found, 'n').options['activation'] == 'relu'
    assert unit_named(found, 'n').non_negative


@pytest.mark.parametrize(
    ('shape', 'kind'), [((2, 5, 8), 'layer_norm'), ((5, 8), 'layer_norm'), ((2, 3, 5, 8), 'float')]
)
def test_layer_norm_of_rows(shape, kind):
    """Of four axes the graph's channels are the second, the layer's the last."""
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)).eval()
    prepare_model(net)
    graph = Tracer(('x',), (torch.randn(shape),)).trace(net)
    assert kind in kinds(make_plan(fx.GraphModule(net, graph)))


@pytest.mark.parametrize(
    ('index', 'options'),
    [
        (lambda x: x[..., ::2, 1::2], dict(start=(0, 1), step=(2, 2))),
        (lambda x: x[:, :, 3:, :], dict(start=(3, 0), step=(1, 1))),
    ],
)
def test_strided_slices_of_an_image_are_codes(plan, index, options):
    found = plan(Net(lambda m, x: m.b(index(m.a(x)))))
    assert kinds(found) == ['input', 'conv', 'slice', 'conv']
    assert unit_named(found, 'getitem').options == options


@pytest.mark.parametrize('index', [lambda x: x[:, :2], lambda x: x[:, :, :4, ::2]])
def test_other_slices_are_islands(plan, index):
    assert 'slice' not in kinds(plan(Net(lambda m, x: m.c(index(m.a(x))), c=conv(2))))


def test_products_of_sizes_are_no_tensors(plan):
    def forward(m, x):
        y = m.a(x)
        return y.reshape(1, y.shape[1], y.shape[2] * y.shape[3])

    assert 'mul' not in kinds(plan(Net(forward)))


def test_norm_without_running_statistics_stays_in_float(plan):
    found = plan(Net(lambda m, x: m.n(m.a(x)), n=nn.BatchNorm2d(4, track_running_stats=False)))
    assert reasons(found) == {'n': 'BatchNorm2d has no int8 form'}


@pytest.mark.parametrize(
    ('forward', 'layers', 'wanted'),
    [
        (lambda m, x: m.b(m.a(x) + 1), {}, {'add': 'add has no int8 form'}),
        (
            lambda m, x: m.b(torch.add(m.a(x), x, alpha=2)),
            {},
            {'add': 'add has no int8 form'},
        ),
        (lambda m, x: m.b(torch.cat([m.a(x), x], 2)), {}, {'cat': 'cat has no int8 form'}),
        (
            lambda m, x: m.b(m.a(x).transpose(2, 3)),
            {},
            {'transpose': 'moves float32 values, computes nothing'},
        ),
        (
            lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode='bilinear')),
            {},
            {'interpolate': 'bilinear interpolation has no int8 form'},
        ),
        (
            lambda m, x: m.b(F.interpolate(m.a(x), size=(9, 9))),
            {},
            {'interpolate': "interpolation to a size that is not another tensor's"},
        ),
        (
            lambda m, x: m.b(m.p(x)),
            dict(p=nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect')),
            {'p': 'reflect padding of uneven or copied rows'},
        ),
        (
            lambda m, x: m.b(m.p(x)),
            dict(p=nn.Conv2d(4, 4, 4, padding='same')),
            {'p': 'zeros padding of uneven or copied rows'},
        ),
        (
            lambda m, x: m.b(m.t(x)),
            dict(t=nn.ConvTranspose1d(4, 4, 2)),
            {'t': 'ConvTranspose1d has no int8 form'},
        ),
    ],
)
def test_float_islands_and_their_reasons(plan, forward, layers, wanted):
    found = plan(Net(forward, **layers))
    assert reasons(found) == wanted
    # What b reads is quantized again after the island.
    assert unit_named(found, 'b').operands[0].wants_codes


def test_skipped_layer_is_an_island(plan):
    net = Net(lambda m, x: m.b(m.a(x)))
    found = plan(net, rules=[dict(pattern='a', skip=True)])
    assert reasons(found) == {'a': 'Conv2d is skipped or computes more than a plain layer'}


@pytest.mark.parametrize(('padding', 'kernel'), [('same', 3), ('valid', 3), ('same', (1, 5))])
def test_zero_padding_by_name_is_int8(plan, padding, kernel):
    found = plan(Net(lambda m, x: m.p(x), p=nn.Conv2d(4, 4, kernel, padding=padding)))
    assert kinds(found) == ['input', 'conv']


def test_steps_that_only_float_reads_stay_in_float(plan):
    def forward(m, x):
        y = F.max_pool2d(torch.cat([m.a(x), x], 1), 2)
        return F.relu(y + y) * 2

    found = plan(Net(forward))
    assert set(kinds(found)) == {'input', 'conv', 'float'}
    assert reasons(found)['cat'] == 'cat is read by float steps only'
    assert reasons(found)['add'] == 'add is read by float steps only'
    # The rectifier that would have been the sum's activation.
    assert reasons(found)['add#2'] == 'add is read by float steps only'


def groups(found):
    return [[unit.path for unit in group] for group in tied_groups(found)]


def test_concat_pool_and_upsample_tie_ranges(plan):
    def forward(m, x):
        y, z = F.relu(m.a(x)), F.relu(m.b(x))
        up = F.interpolate(F.max_pool2d(y, 2), scale_factor=2)
        return m.c(torch.cat([up, z], dim=1)), m.d(m.e(x))

    found = plan(Net(forward, c=conv(8, 4), d=conv(), e=conv()))
    assert groups(found) == [['x'], ['a', 'b', 'max_pool2d', 'interpolate', 'cat'], ['e']]
    assert unit_named(found, 'cat').non_negative


def test_one_signed_operand_makes_a_concat_signed(plan):
    found = plan(Net(lambda m, x: m.c(torch.cat([F.relu(m.a(x)), m.b(x)], 1)), c=conv(8, 4)))
    assert not unit_named(found, 'cat').non_negative
    assert unit_named(found, 'a').non_negative
    assert not unit_named(found, 'b').non_negative


@pytest.mark.parametrize(
    'size',
    [
        lambda y: y.shape[2:],
        lambda y: y.shape[-2:],
        lambda y: y.size()[2:],
        lambda y: y.shape[2:4],
    ],
)
def test_upsample_to_the_size_of_another_tensor(plan, size):
    def forward(m, x):
        y = m.a(x)
        return m.b(y + F.interpolate(m.c(y), size=size(y)))

    found = plan(Net(forward, c=conv(stride=2)))
    up = unit_named(found, 'interpolate')
    assert up.kind == 'upsample'
    assert up.beside.path == 'a'
    assert [operand.path for operand in up.operands] == ['c']
    assert up.options['scale'] is None


@pytest.mark.parametrize(
    ('up', 'scale'),
    [
        (nn.Upsample(scale_factor=2), (2.0, 2.0)),
        (nn.Upsample(scale_factor=(2, 3), mode='nearest'), (2.0, 3.0)),
    ],
)
def test_upsample_by_scale(plan, up, scale):
    found = plan(Net(lambda m, x: m.b(m.up(m.a(x))), up=up))
    assert kinds(found) == ['input', 'conv', 'upsample', 'conv']
    assert unit_named(found, 'up').options['scale'] == scale


@pytest.mark.parametrize(
    'pool',
    [
        lambda m, x: m.pool(x),
        lambda m, x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
        lambda m, x: F.max_pool2d(x, (3, 3), (2, 2), 1, 1, True),
    ],
)
def test_max_pool_options(plan, pool):
    layer = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    found = plan(Net(lambda m, x: m.b(pool(m, m.a(x))), pool=layer))
    (unit,) = [unit for unit in found.units if unit.kind == 'max_pool']
    wanted = dict(kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), ceil_mode=True)
    assert unit.options == wanted


def test_max_pool_with_indices_stays_in_float(plan):
    found = plan(Net(lambda m, x: m.b(m.pool(x)[0]), pool=nn.MaxPool2d(2, return_indices=True)))
    assert reasons(found)['pool'] == 'MaxPool2d has no int8 form'


def test_shared_layer_has_a_unit_for_each_call(plan):
    found = plan(Net(lambda m, x: m.a(F.relu(m.a(x)))))
    assert [unit.path for unit in found.units] == ['x', 'a', 'a#2']
    assert found.units[1].layer is found.units[2].layer


@pytest.mark.parametrize('non_negative', [False, True])
def test_signs(trace, non_negative):
    from mmclipq.lowering.plan import make_plan

    def forward(m, x):
        y = m.b(F.relu(m.a(x)) + x)
        return m.b(torch.sigmoid(y))

    found = make_plan(trace(Net(forward)), non_negative)
    signs = {unit.path: unit.non_negative for unit in found.units}
    # ReLU, then a residual: non-negative only if the image is.
    assert signs['x'] is non_negative
    assert signs['a'] is non_negative
    assert signs['b']  # with the sigmoid behind it
    assert not signs['b#2']
