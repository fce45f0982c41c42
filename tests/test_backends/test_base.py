"""What all backends share: float islands call only what a traced detector may call."""

import pytest
import torch
from torch import nn

from mmclipq.backends import build_backend
from mmclipq.graph import ir
from mmclipq.graph.ir import FLOAT, FloatCall, GraphError, Ref

IMAGE = torch.arange(24.0).reshape(1, 2, 3, 4) - 10


def run(*calls, islands=None):
    nodes = (ir.Input('x', FLOAT), *calls)
    graph = ir.Int8Graph(nodes, Ref(nodes[-1].name), {})
    return build_backend('reference', graph, islands).run(IMAGE)


@pytest.mark.parametrize(
    ('kind', 'target', 'args'),
    [
        ('function', 'os.system', ('true',)),
        ('function', 'builtins.eval', ('1',)),
        ('function', 'torch.load', ('file',)),
        ('function', 'operator.methodcaller', ('save',)),
        ('method', '__reduce__', (Ref('x'),)),
        ('method', 'save', (Ref('x'),)),
        ('method', 'apply_', (Ref('x'),)),
        ('expression', 'torch.cat', (Ref('x'),)),
        ('function', 'builtins.getattr', (Ref('x'), '__class__')),
        ('function', 'builtins.getattr', (Ref('x'), 'backward')),
        ('function', 'builtins.getattr', (Ref('x'), Ref('x'))),
        ('function', 'builtins.getattr', (Ref('x'), 'shape', 'default')),
        ('function', 'builtins.getattr', ()),
    ],
)
def test_other_calls_are_refused_before_anything_runs(kind, target, args):
    with pytest.raises(GraphError, match=f"y: found {kind} '{target}', which no float island may"):
        run(FloatCall('y', FLOAT, kind, target, args))


def test_allowed_calls():
    shape = FloatCall('s', FLOAT, 'function', 'builtins.getattr', (Ref('x'), 'shape'))
    tail = FloatCall('t', FLOAT, 'function', 'operator.getitem', (Ref('s'), slice(2, None)))
    assert run(shape, tail) == (3, 4)
    flat = FloatCall('f', FLOAT, 'method', 'flatten', (Ref('x'),), (('start_dim', 1),))
    assert torch.equal(run(flat), IMAGE.flatten(1))
    cat = FloatCall('c', FLOAT, 'function', 'torch.cat', ([Ref('x'), Ref('x')],), (('dim', 1),))
    assert torch.equal(run(cat), torch.cat([IMAGE, IMAGE], dim=1))


def test_modules_and_parameters_come_from_the_detector():
    islands = nn.ModuleDict({'norm': nn.GroupNorm(1, 2), 'head': nn.Conv2d(2, 2, 1)})
    nn.init.constant_(islands.norm.weight, 3)
    norm = FloatCall('n', FLOAT, 'module', 'norm', (Ref('x'),))
    assert torch.equal(run(norm, islands=islands), islands.norm(IMAGE).detach())
    weight = FloatCall('w', FLOAT, 'parameter', 'head.weight')
    assert run(weight, islands=islands) is islands.head.weight


def test_only_parameters_and_buffers_can_be_read():
    leaf = FloatCall('w', FLOAT, 'parameter', 'head.forward')
    with pytest.raises(KeyError, match='forward'):
        run(leaf, islands=nn.ModuleDict({'head': nn.Conv2d(2, 2, 1)}))


def test_tensors_are_dropped_after_their_last_reader():
    """What outputs name stays, in whatever order it was read."""
    calls = [
        FloatCall('a', FLOAT, 'function', 'operator.neg', (Ref('x'),)),
        FloatCall('b', FLOAT, 'function', 'operator.add', (Ref('a'), Ref('a'))),
        FloatCall('c', FLOAT, 'function', 'operator.add', (Ref('b'), 1)),
    ]
    nodes = (ir.Input('x', FLOAT), *calls)
    graph = ir.Int8Graph(nodes, {'k': [Ref('a'), (Ref('c'), Ref('x'))]}, {})
    outputs = build_backend('reference', graph).run(IMAGE)
    assert torch.equal(outputs['k'][0], -IMAGE)
    assert torch.equal(outputs['k'][1][0], 1 - 2 * IMAGE)
    assert torch.equal(outputs['k'][1][1], IMAGE)
