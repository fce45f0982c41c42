"""Places found on logits: against the plain definition, in every order of memory."""

import itertools

import pytest
import torch

from mmclipq.ops.cpu.boxes import Scores, select_places
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline.settings import least_logit

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')

ORDERS = {
    'channels first': lambda x: x.contiguous(),
    'channels last': lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    'part of wider channels': lambda x: torch.cat([x, x]).permute(1, 2, 0).contiguous()[
        ..., : len(x)
    ].permute(2, 0, 1),
    'part of wider rows': lambda x: torch.cat([x, x], dim=2)[..., : x.shape[2]],
}  # fmt: skip


def plain(x, scores, threshold, gate=None):
    """Whether each place has a score at or above the threshold, ``(H * W,)``."""
    rows = x.flatten(1)
    marks = torch.zeros(rows.shape[1], dtype=torch.bool)
    for group in range(scores.groups):
        first = group * scores.group_stride + scores.first
        own = rows[first : first + scores.channels]
        if scores.background:
            own = own - rows[first + scores.channels]
        found = (~(own < threshold)).any(0)
        if gate is not None:
            other, start, distance, least = gate
            found &= ~(other.flatten(1)[start + group * distance] < least)
        marks |= found
    return marks


def with_company(marks):
    """The rule of the docstring: the last places, and the remainder by 32."""
    marks, count = marks.clone(), len(marks)
    marks[max(0, count - count % 32 - 32) :] = True
    while (count - int(marks.sum())) % 32:
        marks[int(torch.nonzero(~marks)[0])] = True
    return torch.nonzero(marks).flatten()


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(
    ('groups', 'channels', 'extra'), [(1, 80, 0), (3, 1, 0), (3, 4, 5), (2, 20, 0)]
)
def test_places_above_a_threshold(order, groups, channels, extra):
    generator = torch.Generator().manual_seed(groups * channels)
    x = torch.randn(groups * (channels + extra), 13, 17, generator=generator)
    x[0, 3, 4] = float('nan')
    x[-1, 0, 0] = float('inf')
    scores = Scores(groups, channels + extra, extra, channels)
    for threshold in (2.5, 0.0, 9.0, float('-inf')):
        found = select_places(ORDERS[order](x), scores, threshold)
        assert torch.equal(found, with_company(plain(x, scores, threshold)))


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('size', [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize('channels', [1, 3, 20, 720])
def test_maps_of_one_place_row_or_column(order, size, channels):
    x = torch.randn(2 * channels, *size, generator=torch.Generator().manual_seed(channels))
    for scores in (Scores(2, channels, 0, channels), Scores(1, 2 * channels, 0, channels)):
        for most in (0, 5):
            found = select_places(ORDERS[order](x), scores, float('-inf'), most)
            assert torch.equal(found, torch.arange(size[0] * size[1]))
        gate = x, 0, channels, 0.5
        found = select_places(ORDERS[order](x), scores, 1.0, gate=gate)
        assert torch.equal(found, with_company(plain(x, scores, 1.0, gate)))


@pytest.mark.parametrize(('one', 'other'), itertools.product(ORDERS, ORDERS))
def test_a_gate_closes_its_group(one, other):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 20, 31, generator=generator)
    gates = torch.randn(9, 20, 31, generator=generator)
    scores = Scores(3, 8, 0, 8)
    gate = gates, 1, 3, 1.0
    found = select_places(ORDERS[one](x), scores, 1.5, gate=(ORDERS[other](gates), *gate[1:]))
    assert torch.equal(found, with_company(plain(x, scores, 1.5, gate)))
    assert len(found) < len(select_places(x, scores, 1.5))


@pytest.mark.parametrize('order', ORDERS)
def test_logits_less_the_background(order):
    x = torch.randn(4 * 21, 19, 23, generator=torch.Generator().manual_seed(5)) * 3
    scores = Scores(4, 21, 0, 20, background=True)
    found = select_places(ORDERS[order](x), scores, 6.0)
    marks = plain(x, scores, 6.0)
    assert 0 < marks.sum() < len(marks)
    assert torch.equal(found, with_company(marks))


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('channels', [1, 3, 40])
@pytest.mark.parametrize('spread', [1.0, 30.0, 0.0])  # ordinary, all saturated, all equal
def test_the_largest_scores_with_all_that_may_equal_the_last(order, channels, spread):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(channels, 61, 67, generator=generator) * spread
    most = 150
    scores = Scores(1, channels, 0, channels)
    found = set(select_places(ORDERS[order](x), scores, -20.0, most).tolist())
    values = x.flatten(1).sigmoid()
    last = values.flatten().sort(descending=True)[0][most - 1]
    wanted = torch.nonzero((values >= last).any(0)).flatten().tolist()
    assert found.issuperset(wanted)
    if spread == 1.0:
        assert len(found) <= len(wanted) + 100


def test_fewer_scores_than_wanted_are_all_taken():
    x = torch.randn(3, 5, 7)
    assert len(select_places(x, Scores(3, 1, 0, 1), float('-inf'), 1000)) == 35


def test_least_logit_is_below_every_logit_whose_score_exceeds():
    for score in (1e-6, 0.001, 0.05, 0.5, 0.99, 1 - 1e-6):
        logit = torch.tensor(score, dtype=torch.float64).logit().float()
        near = logit + torch.linspace(-1e-5, 1e-5, 2001)
        above = near[near.sigmoid() > score]
        assert len(above)
        assert above.min() > least_logit(score)
    assert least_logit(0) == least_logit(-1) == float('-inf')
