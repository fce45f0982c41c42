"""What is measured of layers' outputs: ranges by their error, and means that biases take back."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmclipq import fixed_point as fp
from mmclipq.backends import build_backend
from mmclipq.calibration.options import CalibrationOptions
from mmclipq.calibration.range_search import weight_exponents
from mmclipq.lowering.part import Lowering


class Net(nn.Module):
    """Two convolutions with norms, and a sum that reads the first one's result, too."""

    def __init__(self, beside=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        self.norm, self.c = nn.BatchNorm2d(4), nn.Conv2d(8, 8, 1)
        self.beside = beside

    def forward(self, x):
        x = F.silu(self.a(x))
        if self.beside:
            x = self.c(x) + x
        return self.norm(self.b(x))


IMAGES = [torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.fixture
def calibrated(trace):
    """A part that has seen ``images``, and measured outputs where the method is ``'output'``."""

    def run(net, images=IMAGES, method='output', **options):
        lowering = Lowering(trace(net))
        for image in images:
            lowering.run(image)
        if method == 'output':
            measure(lowering, images)
        lowering.choose(CalibrationOptions(method, **options))
        return lowering

    return run


@torch.no_grad()
def measure(lowering, images):
    errors = lowering.output_errors()
    with lowering.executing(errors):
        for image in images:
            lowering.run(image)
    lowering.use(errors)
    return errors


@torch.no_grad()
def correct(lowering, images):
    means = lowering.mean_errors()
    with lowering.executing(means):
        for image in images:
            lowering.run(image)
    lowering.corrections = means.corrections


def of_path(lowering, path):
    (unit,) = [unit for unit in lowering.plan.units if unit.path == path]
    return unit


@torch.no_grad()
def test_the_range_with_the_least_error_of_the_output_stands(calibrated):
    net = Net()
    lowering = calibrated(net, method='mse')
    errors = measure(lowering, IMAGES)
    (group,) = [g for g in errors.tried if of_path(lowering, 'a') in g.units]
    found = {}
    for range_ in errors.tried[group]:
        found[range_] = 0.0
        for image in IMAGES:
            x = F.silu(net.a(image))
            rounded = fp.quantize(x, range_.exponent, range_.signed, offset=range_.offset)
            found[range_] += float((net.norm(net.b(rounded)) - net.norm(net.b(x))).square().sum())
    assert len(found) > 2
    assert lowering.chosen[group.key] == min(found, key=found.get)


@torch.no_grad()
def test_a_loud_channel_that_no_layer_hears_does_not_widen_the_range(calibrated):
    """Unless something else reads the tensor, such as a residual."""
    narrower = []
    for beside in (False, True):
        net = Net(beside)
        net.a.weight[0].mul_(32)
        net.b.weight[:, 0].zero_()
        net.c.weight[:, 0].zero_()
        by_tensor, by_output = calibrated(net, method='mse'), calibrated(net)
        kinds = [part.types[of_path(part, 'a')] for part in (by_tensor, by_output)]
        narrower.append(kinds[0].exponent - kinds[1].exponent)
    alone, beside = narrower
    assert alone > beside >= 0


def test_weights_of_silent_inputs_do_not_count():
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    weight[:, 0] *= 40
    energy = torch.ones(1, 6, 1, 1)
    energy[:, 0] = 1e-6
    plain, weighed = weight_exponents(weight, None), weight_exponents(weight, None, '', energy)
    assert (weighed < plain).all()
    assert torch.equal(weight_exponents(weight, None, '', torch.full((1,), 3.0)), plain)


@torch.no_grad()
@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        nn.Conv2d(6, 4, 1, stride=2),
    ],
    ids=['padded', 'depthwise', 'transposed', 'strided'],
)
def test_biases_take_back_what_rounding_moves_the_mean_by(calibrated, layer):
    """Weights that all round up, on inputs that all round down."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
            self.norm = nn.BatchNorm2d(layer.out_channels)

        def forward(self, x):
            return self.norm(self.layer(x))

    net = One().eval()
    torch.manual_seed(1)
    layer.weight.copy_((torch.randint(1, 60, layer.weight.shape) + 0.6) / 64)
    layer.weight.view(-1)[0] = 0.99
    net.norm.running_var.fill_(2.0)
    net.norm.weight.copy_(torch.linspace(-2, 2, layer.out_channels))
    images = [(torch.randint(10, 120, (2, 6, 8, 8)) + 0.4) / 128 for _ in range(3)]
    lowering = calibrated(net, images, 'max', offsets=False)

    def moved(part):
        backend = build_backend('reference', part.emit())
        errors = [backend.run(image) - net(image) for image in images]
        return torch.stack([error.mean((0, 2, 3)) for error in errors]).mean(0)

    before = moved(lowering)
    correct(lowering, images)
    # float32 sums of float32 products are all that is left.
    assert moved(lowering).abs().max() < 1e-4
    assert before.abs().max() > 0.01


@torch.no_grad()
def test_a_linear_layer_is_corrected_along_its_last_axis(calibrated):
    net = nn.Sequential(nn.Linear(5, 7))
    rows = [torch.rand(11, 5, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    lowering = calibrated(net, rows, 'max')
    correct(lowering, rows)
    (correction,) = lowering.corrections.values()
    assert correction.shape == (7,)
    backend = build_backend('reference', lowering.emit())
    moved = torch.cat([backend.run(x) - net(x) for x in rows]).mean(0)
    assert moved.abs().max() < 1e-6


def test_layers_are_as_before_when_measuring_is_interrupted(calibrated):
    net = Net()
    lowering = calibrated(net, method='mse')
    state = [dict(vars(layer)) for layer in (net.a, net.b, net.norm)]
    means = lowering.mean_errors()

    def interrupted(target, args, kwargs):
        raise KeyboardInterrupt

    means.call_module = interrupted
    with pytest.raises(KeyboardInterrupt), lowering.executing(means):
        lowering.run(IMAGES[0])
    assert [dict(vars(layer)) for layer in (net.a, net.b, net.norm)] == state
    batches = lowering._recorder.batches
    lowering.run(IMAGES[0])
    assert lowering._recorder.batches == batches + 1
