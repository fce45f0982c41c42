"""Attention whose projections are layers: what PyTorch's own computes, with the same parameters."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn

from mmclipq.attention import (
    PROJECTIONS,
    Projection,
    SplitAttention,
    join_attention,
    packed_parameters,
    split_attention,
    whole_reason,
)

HEADS, WIDTH, QUERIES, KEYS, IMAGES = 4, 16, 5, 7, 3


def attention(**options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, **options)
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
        nn.init.normal_(module.out_proj.bias)
    return module


def split(module: nn.MultiheadAttention) -> SplitAttention:
    twin = copy.deepcopy(module)
    assert split_attention(twin) == [twin]
    return twin


def inputs(module: nn.MultiheadAttention, alone: bool) -> list[torch.Tensor]:
    sizes = (QUERIES, WIDTH), (KEYS, module.kdim), (KEYS, module.vdim)
    made = [torch.randn(rows, IMAGES, columns) for rows, columns in sizes]
    if alone:
        return [x[:, 0] for x in made]
    return [x.transpose(0, 1) for x in made] if module.batch_first else made


SCORES = {
    'none': lambda images: None,
    'boolean': lambda images: torch.rand(QUERIES, KEYS) > 0.9,
    'added': lambda images: torch.randn(QUERIES, KEYS),
    'of-each-head': lambda images: torch.rand(images * HEADS, QUERIES, KEYS) > 0.9,
}


@pytest.mark.parametrize('alone', [False, True], ids=['batch', 'alone'])
@pytest.mark.parametrize('scores', SCORES)
@pytest.mark.parametrize(
    'options',
    [{}, {'batch_first': True}, {'kdim': 12, 'vdim': 20}, {'bias': False}],
    ids=['packed', 'batch-first', 'unpacked', 'no-bias'],
)
def test_results_are_those_of_the_stock_attention(options, scores, alone):
    module = attention(**options)
    twin, images = split(module), 1 if alone else IMAGES
    given = inputs(module, alone)
    keys = torch.rand(KEYS) > 0.7 if alone else torch.rand(images, KEYS) > 0.7
    keys[..., 0] = False
    for padding, average in itertools.product((None, keys), (True, False)):
        mask = SCORES[scores](images)
        if mask is not None and mask.dtype == torch.bool:
            mask[..., 0] = False  # a query without any key is no number
        elif mask is not None and padding is not None:
            padding = padding.float()
        options = dict(key_padding_mask=padding, attn_mask=mask, average_attn_weights=average)
        for found, wanted in zip(twin(*given, **options), module(*given, **options), strict=True):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert twin(*given, need_weights=False)[1] is None


def test_gradients_reach_the_packed_parameters():
    module = attention()
    twin = split(module)
    given = inputs(module, alone=False)
    for each in (module, twin):
        each(*given)[0].square().sum().backward()
    for (name, found), (_, wanted) in zip(
        twin.named_parameters(), module.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)
        assert found.grad.any()


def test_parameters_and_their_names_stay():
    module = attention()
    before = dict(module.named_parameters())
    state = copy.deepcopy(module.state_dict())
    split_attention(module)
    assert list(module.state_dict()) == list(state)
    after = dict(module.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    assert after.keys() == before.keys()
    module.load_state_dict(state)
    joined = [type(child) for child in (module.q_proj, module.k_proj, module.v_proj)]
    assert joined == [Projection] * 3
    join_attention(module.modules())
    assert type(module) is nn.MultiheadAttention
    assert [name for name, _ in module.named_children()] == ['out_proj']


def test_projections_read_what_their_own_attention_has():
    module = attention()
    split_attention(module)
    module.in_proj_weight = nn.Parameter(torch.arange(3.0 * WIDTH).repeat(WIDTH, 1).T.clone())
    assert [int(getattr(module, name).weight[0, 0]) for name in PROJECTIONS] == [0, 16, 32]
    assert [tuple(getattr(module, name).bias.shape) for name in PROJECTIONS] == [(WIDTH,)] * 3
    twin = copy.deepcopy(module)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    with torch.no_grad():
        module.in_proj_weight.zero_()
    for other in (twin, torch.load(buffer, weights_only=False)):
        assert int(other.v_proj.weight[1, 0]) == 33
    assert not module.v_proj.weight.any()


class Own(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    ('module', 'reason'),
    [
        (Own(4, 2), 'Own is no plain'),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), 'adds keys of its own'),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), 'adds keys of its own'),
    ],
)
def test_other_attention_stays_whole(module, reason):
    kind = type(module)
    assert split_attention(nn.Sequential(module)) == []
    assert type(module) is kind
    assert reason in whole_reason(module)
    assert whole_reason(nn.MultiheadAttention(4, 2)) is None


def test_hint_without_its_mask_is_refused():
    module = split(attention())
    with pytest.raises(ValueError, match='is_causal without attn_mask'):
        module(*inputs(module, alone=False), is_causal=True)


@pytest.mark.parametrize('is_split', [False, True], ids=['whole', 'split'])
def test_packed_parameters_are_those_that_nothing_else_reads(is_split):
    model = nn.ModuleDict({'a': attention(), 'b': attention()})
    if is_split:
        split_attention(model)
    computed = ['a.q_proj', 'a.k_proj', 'a.v_proj', 'a.out_proj', 'b.q_proj', 'b.k_proj']
    found = {f'{path}.{name}' for path, name in packed_parameters(model, computed)}
    assert found & set(model.state_dict()) == {'a.in_proj_weight', 'a.in_proj_bias'}
    assert not any(name.startswith('b.') for name in found)
