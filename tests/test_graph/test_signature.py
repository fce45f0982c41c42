"""The form of a call and what it leaves open, taken apart and put together again."""

import pytest
import torch

from mmclipq.graph import GraphError
from mmclipq.graph.artifact import from_json, to_json
from mmclipq.graph.ir import Ref
from mmclipq.graph.signature import is_form, join_call, split_call


def test_tensors_and_numbers_are_open_and_the_rest_is_form():
    a, b = torch.zeros(1), torch.ones(2)
    form, leaves = split_call(([a, None], 3, 'nearest'), {'flag': True, 'more': {'b': (b, 0.5)}})
    assert form == (
        ([Ref('input0'), None], Ref('input1'), 'nearest'),
        {'flag': True, 'more': {'b': (Ref('input2'), Ref('input3'))}},
    )
    assert leaves[0] is a
    assert leaves[2] is b
    assert leaves[1::2] == [3, 0.5]
    args, kwargs = join_call(form, leaves)
    assert args[0][0] is a
    assert args[1:] == (3, 'nearest')
    assert kwargs['more']['b'] == (b, 0.5)
    assert from_json(to_json(form)) == form


def test_another_flag_is_another_form_and_another_number_is_not():
    x = torch.zeros(1)
    form, _ = split_call((x, 2), {'flag': True})
    assert split_call((x, 7), {'flag': True})[0] == form
    assert split_call((x, 2), {'flag': False})[0] != form
    assert split_call(([x], 2), {'flag': True})[0] != form


def test_sequences_of_other_kinds_count_as_tuples():
    form, leaves = split_call((torch.Size((3, 4)), range(2)), {})
    assert form == (((Ref('input0'), Ref('input1')), (Ref('input2'), Ref('input3'))), {})
    assert leaves == [3, 4, 0, 1]


@pytest.mark.parametrize('value', [object(), {1: torch.zeros(1)}, torch.nn.Identity()])
def test_anything_else_is_refused(value):
    with pytest.raises(GraphError, match=f'found an argument of type {type(value).__name__}'):
        split_call((value,), {})


def test_forms_are_known_whatever_the_order_of_their_keys():
    form, _ = split_call((torch.zeros(1),), {'b': torch.zeros(1), 'a': torch.zeros(1)})
    ordered = form[0], dict(sorted(form[1].items()))
    assert list(ordered[1]) == ['a', 'b']
    assert is_form(form)
    assert is_form(ordered)
    for wrong in (
        None, (), ((), []), ([], {}), ((), {1: 2}), ((Ref('input1'),), {}),
        ((Ref('input0'), Ref('input0')), {}), ((Ref('x'),), {}), ((), {}, ()),
    ):  # fmt: skip
        assert not is_form(wrong)
