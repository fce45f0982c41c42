"""Shapes are followed as PyTorch makes them, and what does not fit is named."""

import pytest
import torch
from _graphs import random_graph

from mmclipq.backends import build_backend
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.graph.inference import Inference, meta
from mmclipq.graph.limits import LimitError, Limits

S8, FLOAT = ir.TensorType(0), ir.FLOAT
START = (ir.Input('image', FLOAT), ir.Quantize('x', S8, 'image'))


def layer(outputs, inputs, kernel=(1, 1)):
    return {
        'w': torch.ones(outputs, inputs, *kernel, dtype=torch.int8),
        'e': torch.zeros(outputs, dtype=torch.int32),
        'm': torch.ones(outputs),
        'b': torch.zeros(outputs),
    }


def infer(*nodes, shape=(1, 4, 8, 6), constants=(), outputs=None, **options):
    graph = ir.Int8Graph((*START, *nodes), ir.Ref(outputs or nodes[-1].name), dict(constants))
    return Inference(graph, [meta(shape)], **options)


def call(target, *args, kind='function', **kwargs):
    return ir.FloatCall('y', FLOAT, kind, target, args, tuple(kwargs.items()), 'a test')


@pytest.mark.parametrize('seed', range(25))
def test_shapes_are_those_of_the_reference(seed):
    made = random_graph(seed)
    kept = ir.Int8Graph(
        made.graph.nodes, [ir.Ref(node.name) for node in made.graph.nodes], made.graph.constants
    )
    found = Inference(kept, [meta(x.shape) for x in made.inputs], made.islands).outputs
    wanted = build_backend('reference', kept, made.islands).run(*made.inputs)
    assert [x.shape for x in found] == [x.shape for x in wanted]
    assert [x.dtype for x in found] == [x.dtype for x in wanted]


CONV = ir.Conv('y', S8, 'x', 'w', 'e', 'm', 'b')
MISFITS = {
    'channels': ((CONV,), layer(2, 3), 'y: found an input of 4 channels, wanted 3'),
    'kernel': ((CONV,), layer(2, 4, (9, 9)), 'one that its kernel fits into'),
    'linear': ((ir.Linear('y', S8, 'x', 'w', 'e', 'm', 'b'),),
               {**layer(2, 5), 'w': torch.ones(2, 5, dtype=torch.int8)}, 'wanted 5 channels'),
    'norm': ((ir.Affine('y', S8, 'x', 'm', 'b'),), layer(3, 4), 'wanted 3 channels'),
    'add': ((ir.Slice('s', S8, 'x', (0, 0), (2, 3)), ir.Add('y', S8, 'x', 's')), {}, 'broadcast'),
    'concat': ((ir.Slice('s', S8, 'x', (0, 0), (2, 2)), ir.Concat('y', S8, ('x', 's'))), {},
               'differ in channels alone'),
    'empty slice': ((ir.Slice('y', S8, 'x', (9, 0)),), {}, 'pixels where it starts'),
    'pool': ((ir.MaxPool('y', S8, 'x', (9, 9), (1, 1)),), {}, 'one to pool'),
    'average': ((ir.AvgPool('y', S8, 'x', (9, 9)),), {}, 'one that its kernel fits into'),
    'flat image': ((ir.Flatten('f', S8, 'x'), ir.Upsample('y', S8, 'f', (2.0, 2.0))), {},
                   'wanted images'),
    'double': ((call('to', ir.Ref('image'), torch.float64, kind='method'),
                ir.Quantize('z', S8, 'y')), {}, "z: found torch.float64 of 'y', wanted float32"),
    'number': ((call('math.sqrt', 4.0), ir.Quantize('z', S8, 'y')), {}, "'y' that is no tensor"),
    'matmul': ((call('torch.matmul', ir.Ref('image'), ir.Ref('image')),), {}, 'y: found function'),
    'division': ((call('operator.truediv', 1, 0),), {}, 'division by zero'),
    'power': ((call('operator.pow', 9, 10**6),), {}, 'wanted numbers'),
    'text': ((call('operator.mod', '%999999999d', 1),), {}, 'wanted numbers'),
    'list': ((call('operator.mul', (1, 2), 10**9),), {}, 'wanted numbers'),
    'values': ((call('torch.repeat_interleave', ir.Ref('image'), ir.Ref('image')),), {},
               'by values'),
    'device': ((call('to', ir.Ref('image'), 'meta', kind='method'),), {}, "the device 'meta'"),
    'foreign': ((call('os.system', 'true'),), {}, 'no float island may call'),
    'no detector': ((call('neck', ir.Ref('image'), kind='module'),), {}, 'found no detector'),
    'bits of floats': ((call('operator.and_', ir.Ref('image'), ir.Ref('image')),), {},
                       'y: found function'),
    'difference of a truth': ((call('sub', ir.Ref('image'), True, kind='method'),), {},
                              'y: found method sub'),
    'no axes': ((call('torch.sum', ir.Ref('image')), ir.Quantize('z', S8, 'y')), {},
                "z: found 'y' without axes"),
    'absent axis': ((call('softmax', ir.Ref('image'), 256, kind='method'),), {}, 'out of range'),
    'method of a list': ((call('split', 'a b', kind='method'),), {}, 'wanted a tensor'),
}  # fmt: skip


@pytest.mark.parametrize('name', MISFITS)
def test_what_does_not_fit_is_named(name):
    nodes, constants, message = MISFITS[name]
    with pytest.raises(ir.GraphError, match=message):
        infer(*nodes, constants=constants)


def test_a_tensor_in_many_pieces():
    with pytest.raises(ir.GraphError, match='y: found 5000 pieces'):
        infer(call('torch.unbind', ir.Ref('image'), 3), shape=(1, 4, 8, 5000))


@pytest.mark.parametrize(
    'node',
    [
        call('torch.full_like', ir.Ref('image'), 1.0),
        call('expand', ir.Ref('image'), 10**6, 4, 8, 6, kind='method'),
        call('new_zeros', ir.Ref('image'), (10**6, 10**6), kind='method'),
        call('torch.nn.functional.pad', ir.Ref('image'), (0, 10**9)),
        call('torch.tile', ir.Ref('image'), (10**5, 10**5)),
        call('torch.nn.functional.interpolate', ir.Ref('image'), (10**6, 10**6)),
        ir.Upsample('y', S8, 'x', scale=(1024.0, 1024.0)),
    ],
    ids=lambda node: getattr(node, 'target', 'upsample'),
)
def test_memory_is_limited_before_it_is_taken(node):
    with pytest.raises(LimitError, match='y: found memory of .*MMCLIPQ_LIMITS='):
        infer(node, limits=Limits(memory=1000))


def test_work_is_limited():
    node, constants = CONV, layer(64, 4, (3, 3))
    found = infer(node, constants=constants)
    assert found.work == 1 * 4 * 8 * 6 + 64 * 6 * 4 * 4 * 9  # to codes, then products
    with pytest.raises(LimitError, match='y: found work of'):
        infer(node, constants=constants, limits=Limits(work=found.work - 1))
    product = call('torch.matmul', ir.Ref('image'), ir.Ref('image'))
    found = infer(product, shape=(1, 1, 50, 50))
    assert found.work == 2500 + 50**3 + 2500


def test_memory_is_that_of_what_is_alive():
    nodes = [ir.Requantize(f'r{i}', S8, 'x' if i == 0 else f'r{i - 1}') for i in range(10)]
    found = infer(*nodes, shape=(1, 1, 10, 10))
    assert found.memory == 400 + 100  # the image and its codes


def test_limits_from_the_environment(monkeypatch):
    monkeypatch.setenv('MMCLIPQ_LIMITS', 'work=1e9, memory=5')
    assert Limits.from_environment() == Limits(work=1e9, memory=5)
    for wrong in ('work', 'work=', 'work=-1', 'work=nan', 'speed=3'):
        monkeypatch.setenv('MMCLIPQ_LIMITS', wrong)
        with pytest.raises(ClipQError, match='MMCLIPQ_LIMITS: found'):
            Limits.from_environment()
