"""What all backends share: float islands call only what a traced detector may call."""

import pytest
import torch
from torch import nn

from mmclipq.backends import BACKENDS, base, build_backend
from mmclipq.errors import ClipQError
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
    with pytest.raises(GraphError, match='parameter head.forward that fails'):
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


@pytest.fixture
def choose(monkeypatch):
    """Chooses a backend where so many others are missing; returns it with the warnings."""
    warnings = []
    monkeypatch.setattr(base, 'print_log', lambda text, *args: warnings.append(text))
    base._warn.cache_clear()

    def choice(name, device, missing=()):
        for key in ('cpu', 'cuda', 'int_mm'):
            reason = f'no {key}; run: make' if key in missing else ''
            monkeypatch.setattr(BACKENDS[key], 'unavailable', lambda device, found=reason: found)
        return base.backend_class(name, device).name, warnings

    yield choice
    base._warn.cache_clear()


@pytest.mark.parametrize(
    ('device', 'missing', 'wanted'),
    [
        ('cpu', (), 'cpu'),
        ('cpu', ('cpu',), 'reference'),
        ('cuda', (), 'cuda'),
        ('cuda:1', ('cpu',), 'cuda'),
        ('cuda', ('cuda',), 'int_mm'),
        ('cuda:0', ('cuda', 'int_mm'), 'reference'),
        ('meta', (), 'reference'),
    ],
)
def test_auto_takes_the_best_backend_of_the_device(choose, device, missing, wanted):
    found, warnings = choose('auto', device, missing)
    assert found == wanted
    tried = [key for key in ('cuda', 'int_mm', 'cpu') if key in missing and wanted != 'cuda']
    assert warnings == [f'mmclipq: backend {key!r} is not used: no {key}; run: make'
                        for key in tried]  # fmt: skip


def test_cuda_without_operators_gives_int_mm_after_one_warning(choose):
    for _ in range(3):
        found, warnings = choose('cuda', 'cuda:0', ('cuda',))
        assert found == 'int_mm'
    assert choose('auto', 'cuda:0', ('cuda',))[0] == 'int_mm'
    assert warnings == ["mmclipq: backend 'cuda' is not used: no cuda; run: make"]


def test_a_name_is_an_error_where_it_has_no_fallback(choose):
    for name, device in (('cuda', 'cpu'), ('cpu', 'cpu'), ('cpu', 'cuda'), ('int_mm', 'cuda')):
        with pytest.raises(ClipQError, match=f"^backend '{name}': no {name}; run: make$"):
            choose(name, device, (name,))
    with pytest.raises(ClipQError, match="^backend 'int_mm': no int_mm; run: make$"):
        choose('cuda', 'cuda', ('cuda', 'int_mm'))
    with pytest.raises(ClipQError, match="found backend 'abacus', wanted one of .* or auto"):
        choose('abacus', 'cpu')
