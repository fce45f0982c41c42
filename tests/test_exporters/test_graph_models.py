"""Exported graphs: float steps, weights, versions, and where quantization stands."""

import dataclasses

import numpy as np
import pytest
import torch
from mmcv.cnn import Scale
from mmdet.models.necks.ssd_neck import L2Norm
from torch import nn

from mmclipq.graph import ir

onnx = pytest.importorskip('onnx')

from mmclipq.exporters.builder import ExportError  # noqa: E402
from mmclipq.exporters.onnx_file import graph_model  # noqa: E402
from mmclipq.exporters.placement import check_placement  # noqa: E402
from mmclipq.exporters.weights import folded_weights  # noqa: E402


class Islands(nn.Module):
    """Modules that float steps call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(2, 4)
        self.scale = Scale(1.5)
        self.l2 = L2Norm(4)
        self.relu, self.silu = nn.ReLU(), nn.SiLU()
        self.gelu, self.elu = nn.GELU(approximate='tanh'), nn.ELU(0.5)
        self.rows, self.mean = nn.LayerNorm(8), nn.AdaptiveAvgPool2d(1)
        parameters = (*self.norm.parameters(), *self.rows.parameters(), self.l2.weight)
        for parameter in parameters:
            nn.init.normal_(parameter)


def island(kind, target, *args, **kwargs):
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.FloatCall('y', ir.FLOAT, kind, target, args, tuple(kwargs.items())),
    )
    return ir.Int8Graph(nodes, ir.Ref('y'), {})


IMAGE = ir.Ref('image')
CALLS = {
    'norm': ('module', 'norm', IMAGE),
    'scale': ('module', 'scale', IMAGE),
    'l2': ('module', 'l2', IMAGE),
    'relu': ('module', 'relu', IMAGE),
    'silu': ('module', 'silu', IMAGE),
    'gelu': ('module', 'gelu', IMAGE),
    'elu': ('module', 'elu', IMAGE),
    'rows': ('module', 'rows', IMAGE),
    'mean': ('module', 'mean', IMAGE),
    'hardswish': ('function', 'torch.nn.functional.hardswish', IMAGE),
    'hardsigmoid': ('function', 'torch.nn.functional.hardsigmoid', IMAGE),
    'exp': ('method', 'exp', IMAGE),
    'float': ('method', 'float', IMAGE),
    'sigmoid': ('function', 'torch.sigmoid', IMAGE),
    'mul': ('function', 'operator.mul', IMAGE, IMAGE),
    'slice': ('function', 'operator.getitem', IMAGE,
              (Ellipsis, slice(None, None, 2), slice(1, None, 2))),
}  # fmt: skip


@pytest.mark.parametrize('name', CALLS)
@torch.no_grad()
def test_float_steps_are_translated(name):
    pytest.importorskip('onnxruntime')
    from mmclipq.backends import build_backend

    islands = Islands()
    graph = island(*CALLS[name])
    image = torch.randn(2, 4, 6, 8)
    found = build_backend('onnxruntime', graph, islands).run(image)
    wanted = build_backend('reference', graph, islands).run(image)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_float_step_without_a_form_is_named():
    with pytest.raises(ExportError, match=r'y: .*pixel_shuffle'):
        graph_model(island('function', 'torch.nn.functional.pixel_shuffle', IMAGE, 2))


def conv_graph(activation='leaky_relu'):
    constants = {
        'w': torch.randint(-127, 128, (4, 4, 1, 1), dtype=torch.int8),
        'e': torch.zeros(4, dtype=torch.int32),
        'm': torch.tensor([1e-4, -2e-4, 0.0, 3e-4]),
        'b': torch.tensor([0.1, 0.2, 0.3, 0.4]),
    }
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Conv('y', kind, 'x', 'w', 'e', 'm', 'b', activation, 0.1),
    )
    return ir.Int8Graph(nodes, ir.Ref('y'), constants)


def test_weights_are_stored_as_int8_and_symmetric():
    model = graph_model(conv_graph(), metadata={'classes': '["a"]'})
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert arrays['y.weight'].dtype == np.int8
    assert (arrays['y.weight_scale'] > 0).all()
    zeros = {n.input[2] for n in model.graph.node if n.op_type.endswith('quantizeLinear')}
    zeros |= {n.input[2] for n in model.graph.node if n.op_type.endswith('QuantizeLinear')}
    assert all(not arrays[name].any() for name in zeros)
    assert {p.key: p.value for p in model.metadata_props} == {'classes': '["a"]'}


@pytest.mark.parametrize(('opset', 'ir_version'), [(17, 8), (18, 8), (19, 9), (20, 9)])
def test_versions_are_options(opset, ir_version):
    model = graph_model(conv_graph(), opset=opset, ir_version=ir_version)
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)


@pytest.mark.parametrize('versions', [dict(opset=11), dict(opset=99), dict(ir_version=2)])
def test_other_versions_are_refused(versions):
    with pytest.raises(ExportError, match='found .* wanted'):
        graph_model(conv_graph(), **versions)


def test_folded_weights_are_exact():
    codes = torch.tensor([[3, -128], [5, -128], [127, -127], [1, 2]], dtype=torch.int8)
    multiplier = torch.tensor([2.0**-9, -(2.0**-9), -(2.0**-8), 0.0])
    bias = torch.tensor([0.0, 1.0, 2.0, 3.0])
    folded = folded_weights(codes, multiplier, bias, -7)
    x = np.array([7.0, -3.0])
    sums = (folded.codes * folded.scale[:, None].astype(np.float64)) @ (x * 2.0**-7)
    sums = sums * (1 if folded.sign is None else folded.sign)
    wanted = codes.double().numpy() @ x * multiplier.double().numpy()
    np.testing.assert_array_equal(sums, wanted)
    assert folded.sign.tolist() == [1, -1, 1, 1]
    assert (folded.scale > 0).all()


def test_placements():
    check_placement(graph_model(conv_graph()))
    with pytest.raises(ExportError, match='found the zero point 128, wanted one of'):
        check_placement(graph_model(conv_graph(), target='onnxruntime'))
    with pytest.raises(ExportError, match="found target 'here'"):
        graph_model(conv_graph(), target='here')


def unsigned_graph():
    graph = conv_graph('relu')
    last = dataclasses.replace(graph.nodes[-1], type=ir.TensorType(0, False))
    behind = dataclasses.replace(last, name='z', x='y')
    return ir.Int8Graph((*graph.nodes[:-1], last, behind), ir.Ref('z'), graph.constants)


def test_tensorrt_gets_int8_alone():
    """Its parser refuses uint8: such a tensor keeps its range and has twice the step."""
    graph = unsigned_graph()
    with pytest.raises(ExportError, match='found codes of uint8, wanted int8'):
        check_placement(graph_model(graph), unsigned=False)
    model = graph_model(graph, target='tensorrt')
    assert {item.type.tensor_type.elem_type for item in model.graph.output} == {3}  # int8
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    steps = {n.output[0]: arrays[n.input[1]].item() for n in model.graph.node
             if n.op_type == 'QuantizeLinear'}  # fmt: skip
    assert steps == {'x': 2.0**-7, 'y': 2.0**-7, 'z': 2.0**-7}
    # Weights and biases are the same numbers whatever the codes of the inputs are.
    same = {i.name: onnx.numpy_helper.to_array(i) for i in graph_model(graph).graph.initializer}
    np.testing.assert_array_equal(arrays['y.weight_scale'], same['y.weight_scale'])
    np.testing.assert_array_equal(arrays['y.bias'], same['y.bias'])


def offset_graph():
    kind = ir.TensorType(0, False, 32)
    image, x, y = conv_graph('silu').nodes
    nodes = (image, dataclasses.replace(x, type=kind), dataclasses.replace(y, type=kind))
    return ir.Int8Graph(nodes, ir.Ref('y'), conv_graph().constants)


def test_offsets_are_zero_points():
    model = graph_model(offset_graph())
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    zeros = {n.output[0]: arrays[n.input[2]] for n in model.graph.node
             if n.op_type == 'QuantizeLinear'}  # fmt: skip
    assert zeros == {'x': 32, 'y': 32}
    assert all(zero.dtype == np.uint8 for zero in zeros.values())
    with pytest.raises(ExportError, match='found the zero point 32, wanted one of'):
        check_placement(model, unsigned=False)


def test_tensorrt_gets_no_offsets():
    """Its zero points must be 0: twice the step then holds all that the tensor can."""
    model = graph_model(offset_graph(), target='tensorrt')
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type == 'QuantizeLinear']
    assert {arrays[n.input[1]].item() for n in pairs} == {2.0**-7}
    assert all(arrays[n.input[2]] == 0 for n in pairs)
    assert {arrays[n.input[2]].dtype for n in pairs} == {np.dtype(np.int8)}


def test_a_graph_may_round_before_an_activation():
    """A tensor that is read by itself and through a sigmoid has codes of its own."""
    graph = conv_graph('identity')
    kind = graph.nodes[-1].type
    nodes = (*graph.nodes, ir.Activate('s', kind, 'y', 'sigmoid'), ir.Mul('z', kind, 'y', 's'))
    graph_model(ir.Int8Graph(nodes, ir.Ref('z'), graph.constants))


def test_padding_under_strides_and_dilation_is_refused():
    graph = conv_graph()
    last = dataclasses.replace(graph.nodes[-1], covering=True, stride=(2, 2), dilation=(2, 2))
    with pytest.raises(ExportError, match='y: found padding that depends on the image under'):
        graph_model(ir.Int8Graph((*graph.nodes[:-1], last), ir.Ref('y'), graph.constants))


def test_windows_that_start_in_padding_are_refused():
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('x', kind),
        ir.AvgPool('y', kind, 'x', (2, 2), (2, 2), (1, 1), ceil_mode=True),
    )
    with pytest.raises(ExportError, match='y: found windows that may start in the padding'):
        graph_model(ir.Int8Graph(nodes, ir.Ref('y'), {}))


def test_weights_that_layers_share_are_stored_once():
    weights = [item.name for item in graph_model(unsigned_graph()).graph.initializer]
    assert 'y.weight' in weights
    assert 'z.weight' not in weights


def test_a_pair_between_a_layer_and_its_activation_is_refused():
    model = graph_model(conv_graph())
    (leaky,) = (n for n in model.graph.node if n.op_type == 'LeakyRelu')
    (last,) = (n for n in model.graph.node if n.output[0] == 'y')
    make = onnx.helper.make_node
    pair = [
        make('QuantizeLinear', [leaky.input[0], *last.input[1:]], ['between'], 'between'),
        make('DequantizeLinear', ['between', *last.input[1:]], ['between.value'], 'back'),
    ]
    leaky.input[0] = 'between.value'
    nodes = list(model.graph.node)
    index = nodes.index(leaky)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:index], *pair, *nodes[index:]])
    with pytest.raises(ExportError, match='between: found QuantizeLinear between'):
        check_placement(model)


def test_codes_that_another_operator_reads_are_refused():
    model = graph_model(conv_graph('identity'), target='tensorrt')
    (conv,) = (n for n in model.graph.node if n.op_type == 'Conv')
    (back,) = (n for n in model.graph.node if n.output[0] == conv.input[0])
    moved = onnx.helper.make_node('Relu', [back.input[0]], ['moved'], 'moved')
    back.input[0] = 'moved'
    nodes = list(model.graph.node)
    index = nodes.index(back)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:index], moved, *nodes[index:]])
    with pytest.raises(ExportError, match=r'x: found codes that moved \(Relu\) reads'):
        check_placement(model, unsigned=False)


def test_tensorrt_joins_values():
    """Where other targets join codes."""
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Concat('y', kind, ('x', 'x')),
    )
    graph = ir.Int8Graph(nodes, ir.Ref('y'), {})
    check_placement(graph_model(graph))
    with pytest.raises(ExportError, match=r'x: found codes that y \(Concat\) reads'):
        check_placement(graph_model(graph), unsigned=False)
    graph_model(graph, target='tensorrt')


def test_a_negative_scale_is_refused():
    model = graph_model(conv_graph())
    for item in model.graph.initializer:
        if item.name == 'y.weight_scale':
            item.CopyFrom(onnx.numpy_helper.from_array(
                -onnx.numpy_helper.to_array(item), item.name))  # fmt: skip
    with pytest.raises(ExportError, match='found a scale that is not positive'):
        check_placement(model)


def test_unread_inputs_are_no_inputs_of_the_model():
    graph = conv_graph()
    nodes = (ir.Input('nothing', ir.FLOAT), *graph.nodes)
    model = graph_model(ir.Int8Graph(nodes, graph.outputs, graph.constants))
    assert [item.name for item in model.graph.input] == ['image']
