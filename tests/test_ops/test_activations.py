"""The ordered float32 activations against PyTorch's own, in float64."""

import pytest
import torch
from torch.nn import functional as F

from mmclipq.graph.ir import ACTIVATIONS
from mmclipq.ops.activations import activate, exp_

WANTED = {
    'identity': lambda x, _: x,
    'relu': lambda x, _: F.relu(x),
    'relu6': lambda x, _: F.relu6(x),
    'leaky_relu': F.leaky_relu,
    'silu': lambda x, _: F.silu(x),
    'sigmoid': lambda x, _: torch.sigmoid(x),
    'tanh': lambda x, _: torch.tanh(x),
    'hardswish': lambda x, _: F.hardswish(x),
    'hardsigmoid': lambda x, _: F.hardsigmoid(x),
    'gelu': lambda x, _: F.gelu(x),
    'gelu_tanh': lambda x, _: F.gelu(x, approximate='tanh'),
    'elu': F.elu,
    'mish': lambda x, _: F.mish(x),
    'exp': lambda x, _: torch.exp(x.clamp(-87, 88)),
}


def values() -> torch.Tensor:
    """Dense around zero, and far out."""
    near = torch.linspace(-12, 12, 100_001)
    far = torch.tensor([-1e4, -500.0, -90, -88, -87, -50, 50, 87, 88, 90, 500, 1e4])
    tiny = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-7, -1e-7])
    return torch.cat([near, far, tiny])


def test_every_activation_is_compared():
    assert set(WANTED) == set(ACTIVATIONS)


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activation_is_that_of_pytorch(name):
    x = values()
    wanted = WANTED[name](x.double(), 0.3)
    found = activate(x.clone(), name, 0.3)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    # 1.5e-7 of the argument is the error of the normal distribution's formula.
    assert (
        (found - wanted).abs() <= 3e-7 * wanted.abs() + 2e-7 * x.double().abs().clamp(1, 6)
    ).all()


def test_exponential_is_within_two_units():
    x = torch.linspace(-87, 88, 1_000_001)
    wanted = torch.exp(x.double())
    assert ((exp_(x) - wanted).abs() / wanted).max() < 1.2e-7
