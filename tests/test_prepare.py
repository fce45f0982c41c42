"""prepare_model on real modules: same objects and keys, reversible, reasons, rules, errors."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import nn

from mmclipq.errors import ClipQError
from mmclipq.layers import ClipConv, ClipLinear
from mmclipq.prepare import (
    clip_layers,
    find_weight_ranges,
    finish_input_observation,
    layer_options,
    load_ranges_state,
    prepare_model,
    ranges_state,
    restore_model,
    start_input_observation,
)


class ConvSubclass(nn.Conv2d):
    """Stands for any subclass that may compute something else."""


@pytest.fixture
def model():
    """Every kind of layer that is clipped, in a fixed order."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        wrappers.Conv2d(4, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(36, 5),
        wrappers.Linear(5, 2, bias=False),
    )


@pytest.fixture
def x():
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def classes(model):
    return [type(module) for module in model.modules()]


def test_layers_change_class_and_nothing_else(model, x):
    parameters = {name: id(p) for name, p in model.named_parameters()}
    modules, keys, output = [id(m) for m in model.modules()], list(model.state_dict()), model(x)
    report = prepare_model(model)
    assert report.clipped == ['0', '2', '4', '5']
    assert report.left == {}
    assert [type(model[i]) for i in (0, 2, 4, 5)] == [ClipConv, ClipConv, ClipLinear, ClipLinear]
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert [id(m) for m in model.modules()] == modules
    assert list(model.state_dict()) == keys
    assert not (model(x) - output).any()


def test_stock_checkpoint_loads_strictly_both_ways(model):
    stock = copy.deepcopy(model)
    prepare_model(model, input_range=8, weight_range=0.125)
    model.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(model.state_dict(), strict=True)


def test_restore_gives_back_classes_attributes_and_outputs(model, x):
    before, attributes = classes(model), [set(m.__dict__) for m in model.modules()]
    output = model(x)
    prepare_model(model, input_range=0.125, weight_range=0.0625, round=True)
    assert not torch.equal(model(x), output)
    restore_model(model)
    assert classes(model) == before
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert torch.equal(model(x), output)
    assert prepare_model(model, 4).clipped == ['0', '2', '4', '5']


def test_hooks_and_an_optimizer_made_before_keep_working(model, x):
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append('forward'))
    model[4].register_forward_pre_hook(lambda *_: calls.append('pre'))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    prepare_model(model, weight_range=4)
    weight = model[0].weight.detach().clone()
    model(x).sum().backward()
    optimizer.step()
    assert calls == ['forward', 'pre']
    assert torch.equal(model[0].weight, weight - model[0].weight.grad)
    assert model[0].weight.grad.any()


def test_preparing_again_keeps_the_first_ranges(model):
    prepare_model(model, input_range=8, weight_range=2)
    report = prepare_model(model, input_range=1, weight_range=1)
    assert report.clipped == ['0', '2', '4', '5']
    assert set(ranges_state(model).values()) == {(3, 1)}
    restore_model(model)
    assert type(model[0]) is nn.Conv2d


def test_a_shared_layer_is_clipped_once_and_stays_shared():
    shared = nn.Conv2d(2, 2, 1)
    model = nn.ModuleDict({'p3': nn.Sequential(shared, nn.ReLU()), 'p4': nn.Sequential(shared)})
    report = prepare_model(model)
    assert report.clipped == ['p3.0']
    assert model['p3'][0] is model['p4'][0] is shared
    assert len(list(clip_layers(model))) == 1
    restore_model(model)
    assert type(shared) is nn.Conv2d


@pytest.mark.parametrize(
    ('layer', 'name', 'reason'),
    [
        (nn.ConvTranspose3d(2, 2, 2), '1', 'ConvTranspose3d is no plain'),
        (
            nn.MultiheadAttention(4, 2, add_zero_attn=True),
            '1.out_proj',
            'adds keys of its own, and reads the weight without calling the layer',
        ),
        (DeformConv2dPack(2, 2, 3), '1', 'DeformConv2dPack samples its input at learned offsets'),
        (ModulatedDeformConv2dPack(2, 2, 3), '1', 'samples its input at learned offsets'),
        (ConvSubclass(2, 2, 1), '1', 'ConvSubclass is no plain Conv2d or Linear'),
        (nn.Conv1d(2, 2, 1), '1', 'Conv1d is no plain'),
        (nn.Conv3d(2, 2, 1), '1', 'Conv3d is no plain'),
        (nn.Embedding(3, 2), '1', 'Embedding is no plain'),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_layers_of_other_kinds_are_left_with_the_reason(layer, name, reason):
    before = classes(layer)
    model = nn.Sequential(nn.Linear(2, 2), layer)
    report = prepare_model(model)
    assert list(report.left) == [name]
    assert reason in report.left[name]
    assert f'{name}: ' in str(report)
    inner = [n for n in report.clipped if n != '0']
    assert inner == (['1.conv_offset'] if 'DeformConv' in reason + type(layer).__name__ else [])
    restore_model(model)
    assert classes(layer) == before


def test_norms_are_neither_clipped_nor_reported():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.PReLU())
    report = prepare_model(model)
    assert (report.clipped, report.left) == (['0'], {})


def test_rules_apply_in_order_and_skip_is_named(model):
    rules = [
        dict(pattern='*', input_range=8),
        dict(pattern='[24]', input_range=4, weight_range=0.5),
        dict(pattern='4', weight_range='auto', round=True),
        dict(pattern='5', skip=True),
    ]
    report = prepare_model(model, input_range=2, weight_range=1, rules=rules)
    assert ranges_state(model) == {'0': (3, 0), '2': (2, -1), '4': (2, None)}
    assert [layer.rounded for _, layer in clip_layers(model)] == [False, False, True]
    assert report.left == {'5': 'skipped by a rule'}
    assert type(model[5]) is wrappers.Linear


def test_a_later_rule_takes_a_skip_back(model):
    rules = [dict(pattern='*', skip=True), dict(pattern='2', skip=False)]
    assert prepare_model(model, rules=rules).clipped == ['2']


def test_rules_win_over_first_and_last_layer():
    names = ['backbone.stem', 'bbox_head.retina_cls', 'bbox_head.retina_reg']
    options = layer_options(
        names,
        rules=[dict(pattern='*.retina_reg', input_range=2)],
        first_layer=dict(weight_range=1),
        last_layer=dict(input_range=16, skip=True),
        input_range=8,
    )
    assert options == {
        names[0]: dict(input_range=8, weight_range=1),
        names[1]: dict(input_range=16, skip=True),
        names[2]: dict(input_range=2, skip=True),
    }


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(input_range=6), 'clipq: input_range: found 6'),
        (dict(weight_range='8'), "clipq: weight_range: found '8'"),
        (dict(weight_range=None), 'clipq: weight_range: found None'),
        (dict(rules=[dict(pattern='4', weight_range=0.3)]), "rule '4': weight_range: found 0.3"),
        (dict(rules=[dict(pattern='backbone.*')]), "found no layer named like 'backbone"),
        (dict(rules=[dict(input_range=8)]), "without 'pattern'"),
        (dict(rules=[dict(pattern='0', inputs=8)]), "rule '0': found .*inputs"),
        (dict(first_layer=dict(pattern='0')), 'first_layer: found .*pattern'),
        (dict(first_layer=dict(input_range=-8)), 'first_layer: input_range: found -8'),
        (dict(last_layer=dict(skip=True)), 'last_layer: found no layer with a prediction name'),
    ],
)
def test_wrong_options_are_refused_and_the_model_is_unchanged(options, message, model):
    before, attributes = classes(model), [set(m.__dict__) for m in model.modules()]
    with pytest.raises(ClipQError, match=message):
        prepare_model(model, **options)
    assert classes(model) == before
    assert [set(m.__dict__) for m in model.modules()] == attributes


def test_a_model_without_layers_to_clip_is_refused():
    with pytest.raises(ClipQError, match='Sequential: found no plain Conv2d or Linear'):
        prepare_model(nn.Sequential(nn.ReLU(), nn.Conv1d(2, 2, 2)))


def test_ranges_travel_to_another_copy(model):
    other = copy.deepcopy(model)
    prepare_model(model, input_range=8, rules=[dict(pattern='2', weight_range=0.5)])
    prepare_model(other)
    load_ranges_state(other, ranges_state(model))
    assert ranges_state(other) == ranges_state(model)
    assert ranges_state(other)['2'] == (3, -1)


@pytest.mark.parametrize(
    ('missing', 'extra', 'odd'),
    [
        (['2'], ['extra'], r"'2', 'extra'\] \(2"),
        (['2'], [], r"'2'\] \(1"),
        ([], ['x'], r"'x'\] \(1"),
    ],
)
def test_ranges_of_other_layers_are_refused_and_nothing_is_set(missing, extra, odd, model):
    prepare_model(model)
    state = ranges_state(model)
    wrong = {name: (3, 3) for name in [*state, *extra] if name not in missing}
    with pytest.raises(ClipQError, match=rf'other layers than the model has: \[{odd} in all\)'):
        load_ranges_state(model, wrong)
    assert ranges_state(model) == state


def test_open_weight_ranges_hold_the_weights(model):
    rules = [dict(pattern='4', weight_range=8)]
    prepare_model(model, rules=rules)
    for layer, value in zip((0, 2, 4, 5), (0.25, -0.26, 0.1, 3.0), strict=True):
        model[layer].weight.data.zero_().view(-1)[-1] = value
    find_weight_ranges(model)
    assert [e for _, e in ranges_state(model).values()] == [-2, -1, 3, 2]


def test_weights_that_are_not_finite_are_named(model):
    prepare_model(model)
    model[4].weight.data[0, 0] = float('nan')
    with pytest.raises(ClipQError, match='4.weight: found 1 NaN'):
        find_weight_ranges(model)


@pytest.mark.parametrize(('percentile', 'exponent'), [(100, 4), (99, 1), (50, -3)])
def test_open_input_ranges_come_from_the_batches(percentile, exponent):
    model = nn.ModuleList([nn.Linear(10, 2), nn.Linear(10, 2), nn.Linear(10, 2)])
    prepare_model(model, rules=[dict(pattern='1', input_range=8)])
    assert start_input_observation(model) == 2
    for batch in range(10):
        x = torch.full((10, 10), 0.125)
        x[:, 5:] = 2.0
        if batch == 0:
            x[0, -1] = -9.0
        model[0](x)
        model[1](x)
    finish_input_observation(model, percentile)
    # No batch reached the last one, so it keeps its open range.
    assert [e for e, _ in ranges_state(model).values()] == [exponent, 3, None]
    assert all(layer.observer is None for layer in model)
