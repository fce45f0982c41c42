"""The clipped projections of an attention: ranges of their own on rows of one packed weight."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmclipq.attention import PROJECTIONS, SplitAttention, split_attention
from mmclipq.layers import ClipLinear, ClipProjection
from mmclipq.models.losses import LqLoss
from mmclipq.prepare import (
    clip_layers,
    find_weight_ranges,
    load_ranges_state,
    prepare_model,
    ranges_state,
    restore_model,
)

LAYERS = [*(f'attn.{name}' for name in PROJECTIONS), 'attn.out_proj']


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attn(x, x * 2, x * 3)[0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Model()
    nn.init.normal_(model.attn.in_proj_weight)
    return model


def test_projections_are_clipped_and_restored(model):
    weight, keys = model.attn.in_proj_weight, list(model.state_dict())
    report = prepare_model(model)
    assert sorted(report.clipped) == sorted(LAYERS)
    assert report.left == {}
    assert [type(getattr(model.attn, name)) for name in PROJECTIONS] == [ClipProjection] * 3
    assert type(model.attn.out_proj) is ClipLinear
    assert model.attn.in_proj_weight is weight
    assert list(model.state_dict()) == keys
    restore_model(model)
    assert type(model.attn) is nn.MultiheadAttention
    assert type(model.attn.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
    assert not hasattr(model.attn, 'q_proj')


def test_nothing_clipped_is_the_stock_attention(model):
    twin, x = copy.deepcopy(model), torch.randn(5, 3, 8)
    prepare_model(model, input_range=1024, weight_range=1024)
    found, wanted = model(x), twin(x)
    for result in (found, wanted):
        result.square().sum().backward()
    assert torch.equal(found, wanted)
    torch.testing.assert_close(model.attn.in_proj_weight.grad, twin.attn.in_proj_weight.grad)


def test_inputs_weights_and_gradients_are_clipped(model):
    twin, x = copy.deepcopy(model), torch.randn(5, 3, 8) * 2
    prepare_model(model, input_range=2, weight_range=0.5)
    split_attention(twin)
    for layer in (getattr(twin.attn, name) for name in (*PROJECTIONS, 'out_proj')):
        layer.forward = lambda x, layer=layer: F.linear(
            x.clamp(-2, 2), layer.weight.clamp(-0.5, 0.5), layer.bias
        )
    found, wanted = model(x), twin(x)
    for result in (found, wanted):
        result.square().sum().backward()
    torch.testing.assert_close(found, wanted)
    gradients = [each.attn.in_proj_weight.grad for each in (model, twin)]
    torch.testing.assert_close(*gradients)
    outside = model.attn.in_proj_weight.abs() > 0.5
    assert outside.any()
    assert not gradients[0][outside].any()
    assert gradients[0][~outside].all()


def test_each_projection_has_its_own_range(model):
    with torch.no_grad():
        model.attn.in_proj_weight[:8].mul_(100)
    prepare_model(model, rules=[dict(pattern='*.k_proj', weight_range=0.25)])
    find_weight_ranges(model)
    found = {name.split('.')[1]: pair[1] for name, pair in ranges_state(model).items()}
    assert found['k_proj'] == -2
    assert found['q_proj'] > 6 > found['v_proj']
    again = Model()
    prepare_model(again)
    load_ranges_state(again, ranges_state(model))
    assert ranges_state(again) == ranges_state(model)


def test_rule_may_skip_a_projection(model):
    report = prepare_model(model, rules=[dict(pattern='attn.v_proj', skip=True)])
    assert report.left == {'attn.v_proj': 'skipped by a rule'}
    assert isinstance(model.attn, SplitAttention)
    assert model(torch.randn(5, 3, 8)).shape == (5, 3, 8)


def test_refused_options_leave_the_attention_whole(model):
    with pytest.raises(ValueError, match='no layer named like'):
        prepare_model(model, rules=[dict(pattern='none')])
    assert type(model.attn) is nn.MultiheadAttention


def test_lq_loss_pulls_the_rows_of_each_range(model):
    prepare_model(model, weight_range=1)
    loss = LqLoss(target='clip')(layer for _, layer in clip_layers(model))
    loss.backward()
    weight = model.attn.in_proj_weight
    assert torch.equal(weight.grad != 0, weight.abs() > 1)
    torch.testing.assert_close(weight.grad, 2 * (weight - weight.clamp(-1, 1)).detach())
