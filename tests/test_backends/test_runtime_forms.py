"""How many codes other runtimes and the table give differently from the reference, form by form."""

import pytest
import torch

pytest.importorskip('onnx')

from mmclipq.backends import build_backend
from mmclipq.backends.runtimes.onnxruntime import OnnxRuntimeBackend
from mmclipq.graph import ir

SMOOTH = [
    'silu', 'sigmoid', 'tanh', 'hardswish', 'hardsigmoid', 'gelu', 'gelu_tanh', 'elu', 'mish',
    'exp',
]  # fmt: skip
X, Y = ir.TensorType(2, False, 16), ir.TensorType(2, False, 16)
PRODUCT = dict(x='x', weight='w', exponents='e', multiplier='m', bias='b')


def form(name):
    """A node that gives ``(N, 16, H, W)`` codes of the inputs ``x`` and ``r``."""
    name, _, activation = name.partition(' ')
    activation = dict(activation=activation or 'identity', slope=0.75)
    match name:
        case 'conv':
            return ir.Conv('y', Y, **PRODUCT, padding=(1, 1), **activation)
        case 'residual':
            return ir.Conv('y', Y, **PRODUCT, padding=(1, 1), **activation, residual='r')
        case 'residual_last':
            return ir.Conv(
                'y', Y, **PRODUCT, padding=(1, 1), **activation, residual='r', residual_last=True
            )
        case 'transposed':
            return ir.ConvTranspose('y', Y, **PRODUCT, stride=(2, 2), **activation)
        case 'activate':
            return ir.Activate('y', Y, 'x', **activation)
        case 'add':
            return ir.Add('y', Y, 'x', 'r', **activation)
        case 'mul':
            return ir.Mul('y', Y, 'x', 'r', **activation)
        case 'average':
            return ir.AvgPool('y', Y, 'x', (3, 3), (2, 2), (1, 1))
        case 'average_all':
            return ir.AvgPool('y', Y, 'x')
        case 'affine':
            return ir.Affine('y', Y, 'x', 'am', 'b', **activation)
        case 'group_norm':
            return ir.GroupNorm('y', Y, 'x', 'g', 'b', groups=4, **activation)
        case 'layer_norm':
            return ir.LayerNorm('y', Y, 'x', 'g', 'b', **activation)


FORMS = [
    *(f'conv {activation}' for activation in ('', 'leaky_relu', *SMOOTH)),
    *(f'activate {activation}' for activation in SMOOTH),
    'residual silu', 'residual_last silu', 'transposed', 'transposed silu', 'add', 'add silu',
    'mul', 'mul hardswish', 'average', 'average_all', 'affine', 'affine silu', 'group_norm',
    'group_norm silu', 'layer_norm', 'layer_norm gelu',
]  # fmt: skip


def graph_of(name):
    generator = torch.Generator().manual_seed(0)
    node = form(name)
    codes = torch.randint(-128, 128, (16, 16, 3, 3), generator=generator)
    constants = {
        'w': codes.to(torch.int8),
        'e': torch.zeros(16, dtype=torch.int32),
        'm': (torch.rand(16, generator=generator) + 0.5) * 2.0**-15,
        'am': (torch.rand(16, generator=generator) + 0.5) * 2.0**-6,
        'g': torch.rand(16, generator=generator) + 0.5,
        'b': torch.rand(16, generator=generator) - 0.25,
    }
    inputs = tuple(ir.Input(tensor, X) for tensor in dict.fromkeys(node.inputs))
    return ir.Int8Graph((*inputs, node), ir.Ref('y'), constants)


def differences(name, runtime):
    """Share of codes that differ, and by how many steps at most."""
    made = graph_of(name)
    generator = torch.Generator().manual_seed(1)
    codes = [
        torch.randint(0, 256, (2, 16, 41, 37), generator=generator).to(torch.uint8)
        for node in made.nodes
        if isinstance(node, ir.Input)
    ]
    wanted, found = (build_backend(b, made).run(*codes) for b in ('reference', runtime))
    apart = (found.int() - wanted.int()).abs()
    assert wanted.float().std() > 1  # no tensor that saturates
    return (apart > 0).float().mean().item(), apart.max().item()


def test_table_of_a_small_range():
    """Silu turns back to zero, but sums of such a tensor never get there."""
    x, y = ir.TensorType(-8), ir.TensorType(-9, False, 64)
    constants = {'m': torch.full((4,), 2.0**-15), 'b': torch.zeros(4)}
    nodes = ir.Input('x', x), ir.Affine('y', y, 'x', 'm', 'b', 'silu')
    made = ir.Int8Graph(nodes, ir.Ref('y'), constants)
    codes = torch.arange(-128, 128, dtype=torch.int8).view(1, 4, 8, 8)
    wanted, found = (build_backend(b, made).run(codes) for b in ('reference', 'table'))
    assert wanted.float().std() > 5
    assert (found.int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize('name', FORMS)
def test_onnxruntime(name, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(OnnxRuntimeBackend, 'target', 'standard')
    share, steps = differences(name, 'onnxruntime')
    assert steps <= 1
    assert share <= 0.0005


@pytest.mark.parametrize('name', FORMS)
def test_openvino(name):
    pytest.importorskip('openvino')
    share, steps = differences(name, 'openvino')
    assert steps <= 1
    assert share <= 0.0005


@pytest.mark.parametrize('name', FORMS)
def test_table(name):
    """Fine codes are rounded, and their lines are within 1/16 of a step."""
    share, steps = differences(name, 'table')
    assert steps <= 1
    assert share <= (0.03 if name.partition(' ')[2] in SMOOTH else 0.0005)


@pytest.mark.parametrize('name', [name for name in FORMS if 'conv' in name or 'residual' in name])
def test_sums_that_are_rounded_before_the_activation(name):
    """The target ``onnxruntime`` rounds to a grid over all inputs that it tells apart."""
    pytest.importorskip('onnxruntime')
    _, steps = differences(name, 'onnxruntime')
    assert steps <= 4
