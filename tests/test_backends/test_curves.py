"""SiLU's codes by curves are the reference's: close to ties, beyond both ends, in all ranges."""

import pytest
import torch

from mmclipq.backends import build_backend
from mmclipq.graph import ir
from mmclipq.ops.activations import silu
from mmclipq.ops.cpu import library

REASON = library.why_unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f'no CPU operators: {REASON}')

KINDS = [(True, 0), (False, 0), (False, 16), (False, 64)]


@pytest.fixture(params=[2, 1, 0], autouse=True)
def _generation(request):
    operators = library.library()
    if operators.clipq_limit_generation(request.param) != request.param:
        operators.clipq_limit_generation(2)
        pytest.skip('this processor has older vector units')
    yield
    operators.clipq_limit_generation(2)


def neighbours(values, count):
    """Each of float32 ``values`` with its ``count`` neighbours on both sides."""
    found, below, above = [values], values, values
    for _ in range(count):
        below = torch.nextafter(below, torch.full_like(below, -torch.inf))
        above = torch.nextafter(above, torch.full_like(above, torch.inf))
        found += [below, above]
    return torch.cat(found)


def values_at_ties(step):
    """Values around those whose SiLU lies between two codes of ``step``, on both branches."""
    wanted = ((torch.arange(-300, 301) + 0.5) * step).double()
    found = []
    for low, high, rises in ((-1.2784645, 1e4, True), (-40.0, -1.2784645, False)):
        a, b = torch.full_like(wanted, low), torch.full_like(wanted, high)
        for _ in range(80):
            middle = (a + b) / 2
            above = (middle * middle.sigmoid() > wanted) == rises
            a, b = torch.where(above, a, middle), torch.where(above, middle, b)
        found.append(b[(b - low).abs().clamp(max=(high - b).abs()) > 1e-9].float())
    return neighbours(torch.cat(found), 3)


def check(values, out, residual=None, last=False, slots=16):
    """A layer whose bias alone makes ``values``; an added code may move them."""
    count = len(values)
    constants = {
        'w': torch.zeros(count, 4, 1, 1, dtype=torch.int8),
        'e': torch.zeros(count, dtype=torch.int32),
        'm': torch.ones(count),
        'b': values,
    }
    nodes = [ir.Input('i', ir.FLOAT), ir.Quantize('x', ir.TensorType(0), 'i')]
    inputs = [torch.rand(1, 4, 1, slots)]
    if residual is not None:
        nodes += [ir.Input('j', ir.FLOAT), ir.Quantize('r', residual, 'j')]
        whole = 2.0**residual.exponent
        inputs.append((torch.rand(1, count, 1, slots) - 0.3) * 2.2 * whole)
    options = {} if residual is None else dict(residual='r', residual_last=last)
    nodes.append(ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', 'silu', **options))
    graph = ir.Int8Graph(tuple(nodes), ir.Ref('y'), constants)
    found, expected = (
        build_backend(name, graph).codes(*inputs)['y'] for name in ('cpu', 'reference')
    )
    assert torch.equal(found, expected)
    return expected


@pytest.mark.parametrize('exponent', [-14, -5, -2, 0, 1, 3, 5])
@pytest.mark.parametrize(('signed', 'offset'), KINDS)
def test_ties_and_ends(exponent, signed, offset):
    out = ir.TensorType(exponent, signed, offset)
    step = 2.0**out.step_exponent
    ties = values_at_ties(step)
    if exponent > -10:  # the branch below is flat in large steps only
        assert len(ties) > 200
        near = (silu(ties) / step) % 1 - 0.5
        assert near.abs().median() < 1e-3
    wide = torch.cat([torch.linspace(-8, 8, 997) * 2.0**exponent, torch.linspace(-100, 100, 997)])
    far = torch.tensor([0.0, -0.0, 87.0, -87.0, 88.5, -88.5, 1e9, -1e9, 1e24, -1e24, 1e-40, -1e-40])
    assert len(check(torch.cat([ties, wide, far]), out, slots=1).unique()) > 64


@pytest.mark.parametrize('exponent', [-12, -7, -4, -1, 2, 4])
@pytest.mark.parametrize(('signed', 'offset'), KINDS)
def test_many_values(exponent, signed, offset):
    """Wherever values of a layer lie, in its range and far beyond."""
    generator = torch.Generator().manual_seed(exponent)
    values = torch.randn(1 << 15, generator=generator) * 2.0 ** (exponent - 1)
    wide = torch.randn(1 << 12, generator=generator) * 9
    out = ir.TensorType(exponent, signed, offset)
    assert len(check(torch.cat([values, wide]), out, slots=1).unique()) > 64


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('exponent', [-9, -3, 0, 2, 4])
@pytest.mark.parametrize('shift', [-3, 0, 2])
@pytest.mark.parametrize(('signed', 'offset'), KINDS[::2])
def test_with_codes_added(exponent, shift, last, signed, offset):
    out = ir.TensorType(exponent, signed, offset)
    residual = ir.TensorType(exponent + shift, not signed, 32 if signed else 0)
    wide = torch.cat([torch.linspace(-6, 6, 97) * 2.0**exponent, torch.linspace(-90, 90, 31)])
    ties = values_at_ties(2.0**out.step_exponent)
    found = check(torch.cat([ties[:: max(1, len(ties) // 200)], wide]), out, residual, last)
    assert len(found.unique()) > 64
