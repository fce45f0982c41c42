"""Tracing beside an execution: structure is followed, and what depends on data becomes one step."""

import math

import pytest
import torch
from asserting import of_four_axes
from torch import nn
from torch.nn import functional as F

from mmclipq.lowering.tracer import BOOKKEEPING, REASON, CaptureError, Tracer, trace


class Part(nn.Module):
    """``forward`` calls ``function`` with the part itself and the inputs."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def traced(part, *examples):
    return trace(part.eval(), [f'x{i}' for i in range(len(examples))], examples)


def reasons(module):
    return {n.target: n.meta[REASON] for n in module.graph.nodes if REASON in n.meta}


def leaves(module):
    return [node.target for node in module.graph.nodes if node.op == 'call_module']


X = torch.arange(24.0).reshape(1, 2, 3, 4) - 7
OTHER = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))


def condition(self, x):
    return self.conv(x) if x.sum() > 0 else self.conv(-x)


def size_condition(self, x):
    return self.conv(x[..., :2]) if x.shape[3] > 3 else self.conv(x)


def loop(self, x):
    return torch.stack([self.conv(row[None]) for row in x])


def constant(self, x):
    return self.conv(x) + torch.ones(1)


def unknown_function(self, x):
    return self.conv(torch.special.sinc(x))


def number(self, x):
    return self.conv(x) * float(x.shape[2])


@pytest.mark.parametrize(
    ('function', 'reason'),
    [
        (condition, 'a condition on data or sizes'),
        (size_condition, 'a condition on data or sizes'),
        (loop, 'a loop over a tensor'),
        (constant, 'a tensor made on the way, which belongs to no module'),
        (unknown_function, 'a call of special_sinc'),
        (number, 'float() argument must be'),
    ],
)
def test_smallest_module_around_becomes_one_step(function, reason):
    inner = Part(function, conv=nn.Conv2d(2, 2, 1))
    before = nn.Conv2d(2, 2, 1)
    outer = Part(lambda self, x: F.relu(self.inner(self.before(x))), before=before, inner=inner)
    module = traced(outer, X)
    assert leaves(module) == ['before', 'inner']
    (found,) = reasons(module).values()
    assert found.startswith(f'Part cannot be traced: {reason}')
    for x in (X, OTHER):
        assert torch.equal(module(x), outer(x))


def test_failure_of_the_root_itself_is_named():
    with pytest.raises(
        CaptureError, match=r'detector \(Part\): .* \(a condition on data or sizes\)'
    ):
        traced(Part(condition, conv=nn.Conv2d(2, 2, 1)), X)


def test_nothing_of_a_failed_attempt_remains():
    """Steps and parameters read before the failure, and lists that the module has changed."""

    def function(self, xs):
        xs.append(self.weight * xs[0])
        return xs[0] + self.weight if xs[1].sum() > 0 else xs[1]

    inner = Part(function)
    inner.weight = nn.Parameter(torch.ones(1))
    outer = Part(lambda self, x: self.inner([x * 2]) + self.inner.weight, inner=inner)
    module = traced(outer, X)
    assert leaves(module) == ['inner']
    assert torch.equal(module(OTHER), outer(OTHER))
    assert [n.target for n in module.graph.nodes if n.op == 'get_attr'] == ['inner.weight']


def test_results_of_a_step_are_unpacked():
    def function(self, x):
        if x.sum() > 1e9:
            return None
        return {'a': (x, x + 1), 'b': [x * 2], 'none': None, 'size': 2}

    def outer(self, x):
        found = self.inner(x)
        assert len(found['a']) == 2
        assert found['none'] is None
        total = found['b'][0] * found['size']
        for part in found['a']:
            total = total + part
        return total

    outer = Part(outer, inner=Part(function, child=nn.Identity()))
    module = traced(outer, X)
    assert torch.equal(module(OTHER), outer(OTHER))


def test_structure_decides_without_a_step():
    def function(self, x):
        batch, _, *size = of_four_axes(x, 2).shape
        if x.dtype == torch.float32 and x.ndim == 4 and len(x.shape) == 4 and x.numel() > 0:
            x = x.reshape(batch, -1, *size)
        first, second = x.split(1, dim=1)
        if x.requires_grad or self.weight.shape[0] == 3 or self.table.size(0) > 9:
            return first
        return second * self.weight + self.table

    part = Part(function)
    part.weight = nn.Parameter(torch.ones(1))
    part.register_buffer('table', torch.full((1,), 3.0))
    module = traced(part, X)
    assert not reasons(module)
    assert torch.equal(module(OTHER), part(OTHER))


def test_sizes_stay_open():
    def function(self, x, scale):
        height = x.shape[2]
        height += 1
        return F.interpolate(x, size=(height, x.size(3) * 2)) * scale, x.shape[2], math.sqrt(height)

    module = trace(Part(function), ['x', 'scale'], [X, 2])
    found, height, root = module(OTHER, 3)
    assert found.shape == (1, 2, 6, 12)
    assert (height, root) == (5, math.sqrt(6))
    numbers = [n.name for n in module.graph.nodes if n.meta.get(BOOKKEEPING)]
    assert {'scale', 'getitem', 'sqrt'} <= set(numbers)


@pytest.mark.parametrize(
    'change',
    [
        lambda x: x.relu_(),
        lambda x: F.relu(x, inplace=True),
        nn.ReLU(inplace=True),
        lambda x: x.add_(1),
    ],
)
def test_who_reads_after_a_change_in_place_reads_its_result(change):
    def function(self, x):
        x = x * 1
        before = x + 0
        (self.act if isinstance(change, nn.Module) else change)(x)
        return before, x * 2

    part = Part(function, **({'act': change} if isinstance(change, nn.Module) else {}))
    module = traced(part, X)
    changed = next(n for n in module.graph.nodes if n.name.startswith('mul_1'))
    assert changed.args[0].name != 'mul'
    for found, wanted in zip(module(OTHER.clone()), part(OTHER.clone()), strict=True):
        assert torch.equal(found, wanted)


def test_changes_that_a_graph_cannot_hold_are_refused():
    with pytest.raises(CaptureError, match="found a change in place of the input 'x0'"):
        traced(Part(lambda self, x: x.relu_()), X)

    def function(self, x):
        x = x * 1
        x.flatten(1).relu_()
        return x

    with pytest.raises(CaptureError, match='found a view changed in place'):
        traced(Part(function), X)


def test_examples_are_not_changed():
    x = X.clone()
    traced(Part(lambda self, x: (x * 1).relu_()), x)
    assert torch.equal(x, X)


def test_values_that_no_step_can_read_are_dropped(monkeypatch):
    held = []
    execute = Tracer._execute

    def counted(self, node):
        held.append(sum(isinstance(value, torch.Tensor) for value in self.values.values()))
        return execute(self, node)

    monkeypatch.setattr(Tracer, '_execute', counted)

    def chain(self, x):
        first = self.conv(x)
        y = first
        for _ in range(5):
            y = torch.relu(y) * y.shape[2]
        return y + first

    module = traced(Part(chain, conv=nn.Conv2d(2, 2, 1)), X)
    assert len(held) > 20
    assert max(held) == 4  # the input, what is read at the end, what is read and made in the loop
    with torch.no_grad():
        assert torch.equal(module(OTHER), chain(module, OTHER))
