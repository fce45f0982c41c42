"""The simulation against the rounded model and the integers, whole, in parts and from any step on;
layers that stay in float."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmclipq import fixed_point as fp
from mmclipq.backends import build_backend
from mmclipq.calibration.options import CalibrationOptions
from mmclipq.graph import ir
from mmclipq.lowering.part import Lowering
from mmclipq.lowering.rounded import RoundedExecution


class Net(nn.Module):
    """Residuals, in-place activations and sums, a concatenation, and a step that int8 lacks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(8), nn.LeakyReLU(0.1, inplace=True)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d, self.drop = nn.Conv2d(16, 5, 1), nn.Dropout()
        nn.init.uniform_(self.norm.running_var, 0.2, 2)

    def forward(self, x):
        x = self.act(self.norm(self.a(x)))
        y = F.leaky_relu(self.b(x), 0.2, True)
        y += x
        z = self.drop(self.c(y).cumsum(3) / 9)
        return {'d': self.d(torch.cat([y, z.relu_()], 1)), 'y': y}


IMAGES = [torch.randn(2, 3, 10, 13, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.fixture
def part(trace):
    lowering = Lowering(trace(Net()))
    for image in IMAGES[:2]:
        lowering.run(image)
    lowering.choose(CalibrationOptions())
    return lowering


@torch.no_grad()
def test_it_is_the_rounded_model(part):
    rounded = RoundedExecution(part.module, part.emit())
    wanted = rounded.run(IMAGES[2])
    with part.executing(part.simulation()):
        found = part.run(IMAGES[2])
    for name, value in wanted.items():
        # `y` leaves the rounded model as the codes' values, too.
        assert torch.equal(found[name], value)


@torch.no_grad()
def test_it_is_near_the_integers_with_corrections(part):
    means = part.mean_errors()
    with part.executing(means):
        part.run(IMAGES[0])
    part.corrections = {name: value + 0.5 for name, value in means.corrections.items()}
    with part.executing(part.simulation()):
        found = part.run(IMAGES[2])['d']
    wanted = build_backend('reference', part.emit(), part.module).run(IMAGES[2])['d']
    # Sums in another order move single codes by a step.
    assert float((found - wanted).norm() / wanted.norm()) < 1e-2
    assert float((found - part.run(IMAGES[2])['d']).norm() / wanted.norm()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize('only', [None, {'a'}, {'b', 'd'}])
def test_any_step_can_be_computed_again(part, only):
    simulation = part.simulation()
    simulation.only = only
    with part.executing(simulation):
        wanted = part.run(IMAGES[2])
    again = part.simulation()
    again.only = ()
    if only is None:
        for stop in range(len(again.order)):
            env = simulation.begin(IMAGES[2])
            assert simulation.advance(env, 0, stop) is None
            for _ in range(2):  # the environment is as it was
                found = simulation.advance(dict(env), stop)
                assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        return
    known = again.keep(IMAGES[2])
    copies = {node: value.clone() for node, value in known.items() if torch.is_tensor(value)}
    again.only = only
    changed = [node for node in again.order if node.name in only]
    found = again.again(known, changed)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(known[node], value) for node, value in copies.items())


@torch.no_grad()
def test_one_layer_alone_is_rounded(part):
    net, simulation = part.module, part.simulation()
    simulation.only = {'b'}
    (unit,) = [unit for unit in part.plan.units if unit.path == 'b']
    kind = part.types[unit.operands[0]]
    x = net.act(net.norm(net.a(IMAGES[2])))
    weight = part.weights.values(unit)
    rounded = fp.quantize(x, kind.exponent, kind.signed, offset=kind.offset)
    wanted = F.leaky_relu(F.conv2d(rounded, weight, net.b.bias, padding=1), 0.2) + x
    with part.executing(simulation):
        assert torch.equal(part.run(IMAGES[2])['y'], wanted)


@torch.no_grad()
@pytest.mark.parametrize('layer', ['a', 'b', 'd'])
def test_a_layer_left_in_float_is_float_with_all_that_follows_it(part, layer):
    whole = part.emit()
    part.choose(CalibrationOptions(), left={layer: 'because'})
    graph = part.emit()
    assert [node.name for node in graph.products()] == [
        node.name for node in whole.products() if node.name != layer
    ]
    islands = {name: reason for name, reason in graph.islands.items() if reason == 'because'}
    steps = {'a': ['a', 'norm', 'act'], 'b': ['b', 'leaky_relu', 'add'], 'd': ['d']}
    assert list(islands) == steps[layer]
    assert not [node for node in graph.nodes if isinstance(node, ir.Affine)]
    # Other tensors keep their ranges.
    same = {name: kind for name, kind in graph.tensors.items() if kind.is_codes}
    for name, kind in same.items():
        if name in whole.tensors and whole.tensors[name].is_codes:
            assert whole.tensors[name] == kind
    with part.executing(part.simulation()):
        simulated = part.run(IMAGES[2])
    rounded = RoundedExecution(part.module, graph).run(IMAGES[2])
    assert all(torch.equal(rounded[name], simulated[name]) for name in simulated)
    wanted = part.run(IMAGES[2])['d']
    errors = []
    for found in (graph, whole):
        result = build_backend('reference', found, part.module).run(IMAGES[2])['d']
        errors.append(float((result - wanted).norm() / wanted.norm()))
    assert errors[0] < errors[1] < 0.1
