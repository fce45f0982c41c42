"""Validation of the integer graph: every sentence of GraphError."""

import pytest
import torch

from mmclipq.graph import ir
from mmclipq.graph.ir import FLOAT, GraphError, Int8Graph, Ref, TensorType

S8, U8 = TensorType(0), TensorType(0, signed=False)
START = (ir.Input('image', FLOAT), ir.Quantize('x', S8, 'image'), ir.Quantize('u', U8, 'image'))


def constants(**changes):
    values = {
        'w': torch.zeros(2, 3, 1, 1, dtype=torch.int8),
        'fc': torch.zeros(2, 3, dtype=torch.int8),
        'e': torch.zeros(2, dtype=torch.int32),
        'm': torch.ones(2),
        'b': torch.zeros(2),
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def conv(name='y', kind=S8, x='x', cls=ir.Conv, weight='w', **options):
    return cls(name, kind, x, weight, 'e', 'm', 'b', **options)


VALID = {
    'conv': conv(),
    'conv to float': conv(kind=FLOAT),
    'conv with residual': conv(residual='u', residual_last=True, activation='relu6'),
    'linear': conv(cls=ir.Linear, weight='fc'),
    'add': ir.Add('y', U8, 'x', 'u', 'leaky_relu', 0.1),
    'concat': ir.Concat('y', S8, ('x', 'x')),
    'pool': ir.MaxPool('y', U8, 'u', (2, 2), (2, 2)),
    'upsample': ir.Upsample('y', S8, 'x', like='image'),
    'input of codes': ir.Input('y', U8),
    'flatten': ir.Flatten('y', S8, 'x'),
    'roi align': ir.RoIAlign('y', U8, ('x', 'x'), 'image', (7, 7), (0.25, 0.125)),
    'requantize': ir.Requantize('y', U8, 'x'),
    'dequantize': ir.Dequantize('y', FLOAT, 'x'),
    'float call': ir.FloatCall('y', FLOAT, 'function', 'torch.cat', ([Ref('image')], 1)),
}


@pytest.mark.parametrize('node', VALID.values(), ids=VALID.keys())
def test_accepts(node):
    graph = Int8Graph((*START, node), {'a': [Ref('y')]}, constants())
    assert list(graph.tensors) == ['image', 'x', 'u', 'y']
    assert graph.tensors['y'] == node.type


INVALID = {
    'same name': (ir.Quantize('x', S8, 'image'), 'x: found two tensors of this name'),
    'exponent above': (ir.Quantize('y', TensorType(41), 'image'), 'y: found exponent 41'),
    'exponent below': (ir.Quantize('y', TensorType(-41), 'image'), 'y: found exponent -41'),
    'exponent no integer': (ir.Quantize('y', TensorType(0.5), 'image'), 'y: found the type'),
    'unknown input': (ir.Dequantize('y', FLOAT, 'z'), "y: found input 'z', wanted an earlier"),
    'own input': (ir.Dequantize('y', FLOAT, 'y'), "y: found input 'y', wanted an earlier"),
    'unknown in island': (
        ir.FloatCall('y', FLOAT, 'function', 'torch.cat', ((Ref('image'), Ref('z')),)),
        "y: found input 'z'",
    ),
    'unknown in slice': (
        ir.FloatCall('y', FLOAT, 'function', 'f', (slice(0, Ref('z')),)),
        "y: found input 'z'",
    ),
    'unknown residual': (conv(residual='z'), "y: found input 'z'"),
    'unknown like': (ir.Upsample('y', S8, 'x', like='z'), "y: found input 'z'"),
    'flattened to other codes': (ir.Flatten('y', U8, 'x'), 'y: found type int8 2.0, wanted uint8'),
    'regions of codes': (
        ir.RoIAlign('y', S8, ('x',), 'u', (7, 7), (0.25,)),
        'y: found codes as regions, wanted float32',
    ),
    'levels of two types': (
        ir.RoIAlign('y', S8, ('x', 'u'), 'image', (7, 7), (0.25, 0.125)),
        'y: wanted codes from levels of one type',
    ),
    'float levels': (
        ir.RoIAlign('y', S8, ('image',), 'image', (7, 7), (0.25,)),
        'y: wanted codes from levels of one type',
    ),
    'no levels': (
        ir.RoIAlign('y', S8, (), 'image', (7, 7), ()),
        'y: wanted codes from levels of one type',
    ),
    'averages in float': (
        ir.RoIAlign('y', FLOAT, ('x',), 'image', (7, 7), (0.25,)),
        'y: wanted codes from levels of one type',
    ),
    'a scale too few': (
        ir.RoIAlign('y', S8, ('x', 'x'), 'image', (7, 7), (0.25,)),
        'y: found 1 scales, wanted one for each of 2 levels',
    ),
    'island of codes': (
        ir.FloatCall('y', S8, 'function', 'torch.cat'),
        'y: found codes as the result',
    ),
    'dequantize to codes': (ir.Dequantize('y', S8, 'x'), 'y: found codes as the result'),
    'quantize codes': (ir.Quantize('y', S8, 'x'), 'y: wanted float32 to codes'),
    'quantize to float': (ir.Quantize('y', FLOAT, 'image'), 'y: wanted float32 to codes'),
    'conv of float': (conv(x='image'), "y: found float32 input 'image', wanted codes"),
    'dequantize float': (ir.Dequantize('y', FLOAT, 'image'), "y: found float32 input 'image'"),
    'requantize float': (ir.Requantize('y', S8, 'image'), "y: found float32 input 'image'"),
    'add of float first': (ir.Add('y', S8, 'image', 'x'), "y: found float32 input 'image'"),
    'add of float second': (ir.Add('y', S8, 'x', 'image'), "y: found float32 input 'image'"),
    'add to float': (ir.Add('y', FLOAT, 'x', 'x'), 'y: found float32 as the result'),
    'requantize to float': (ir.Requantize('y', FLOAT, 'x'), 'y: found float32 as the result'),
    'pool sign': (ir.MaxPool('y', S8, 'u', (2, 2), (2, 2)), r'y: found type uint8 2\^0, wanted'),
    'pool exponent': (ir.MaxPool('y', TensorType(1), 'x', (2, 2), (2, 2)), r'wanted int8 2\^1'),
    'upsample to float': (ir.Upsample('y', FLOAT, 'x', (2.0, 2.0)), 'wanted float32 as its'),
    'concat mixed': (ir.Concat('y', S8, ('x', 'u')), 'y: found other types among its inputs'),
    'concat float': (ir.Concat('y', S8, ('x', 'image')), 'y: found other types'),
    'activation': (conv(activation='sine'), "y: found activation 'sine'"),
    'add activation': (ir.Add('y', S8, 'x', 'x', 'sine'), "y: found activation 'sine'"),
    'residual float': (conv(residual='image'), 'y: found a float32 residual, wanted codes'),
    'conv of 2 axes': (conv(weight='fc'), 'y: found a weight of .* wanted one with 4 axes'),
    'linear of 4 axes': (conv(cls=ir.Linear), 'y: found a weight of .* wanted one with 2 axes'),
}


@pytest.mark.parametrize(('node', 'message'), INVALID.values(), ids=INVALID.keys())
def test_refuses(node, message):
    with pytest.raises(GraphError, match=message):
        Int8Graph((*START, node), Ref('x'), constants())


@pytest.mark.parametrize('key', ['w', 'e', 'm', 'b'])
def test_refuses_a_missing_constant(key):
    with pytest.raises(GraphError, match=f"y: found no constant '{key}'"):
        Int8Graph((*START, conv()), Ref('y'), constants(**{key: None}))


@pytest.mark.parametrize(
    ('key', 'dtype'),
    [('w', torch.uint8), ('e', torch.int64), ('m', torch.float64), ('b', torch.float16)],
)
def test_refuses_another_dtype(key, dtype):
    changed = constants()[key].to(dtype)
    with pytest.raises(GraphError, match=f"y: found '{key}' as {dtype}"):
        Int8Graph((*START, conv()), Ref('y'), constants(**{key: changed}))


@pytest.mark.parametrize('key', ['e', 'm', 'b'])
@pytest.mark.parametrize('shape', [(3,), (1,), (), (2, 1)])
def test_refuses_another_shape(key, shape):
    changed = constants()[key].new_zeros(shape)
    with pytest.raises(GraphError, match=f"y: found '{key}' of shape"):
        Int8Graph((*START, conv()), Ref('y'), constants(**{key: changed}))


def test_refuses_an_unknown_output():
    with pytest.raises(GraphError, match="outputs: found 'z'"):
        Int8Graph(START, {'head': ([Ref('x')], (Ref('z'),))}, {})


def test_refs_in_every_container():
    tree = {'a': (Ref('p'), [Ref('q'), 3]), 'b': slice(Ref('r'), None, 2)}
    assert [ref.name for ref in ir.iter_refs(tree)] == ['p', 'q', 'r']
    mapped = ir.map_refs(tree, lambda ref: ref.name.upper())
    assert mapped == {'a': ('P', ['Q', 3]), 'b': slice('R', None, 2)}
    assert isinstance(mapped['a'], tuple)


def test_islands_are_the_steps_with_a_reason():
    shape = ir.FloatCall('s', FLOAT, 'function', 'builtins.getattr', (Ref('image'), 'shape'))
    step = ir.FloatCall('f', FLOAT, 'module', 'norm', (Ref('image'),), reason='GroupNorm')
    graph = Int8Graph((*START, shape, step, conv()), Ref('y'), constants())
    assert graph.islands == {'f': 'GroupNorm'}
    assert [node.name for node in graph.products()] == ['y']
