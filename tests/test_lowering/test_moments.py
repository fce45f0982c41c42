"""Second moments of what weights multiply, and codes that make use of them."""

import pytest
import torch
from torch import nn

from mmclipq.lowering import moments as module
from mmclipq.lowering.moments import Moments, columns_of
from mmclipq.lowering.part import Lowering
from mmclipq.lowering.plan import PRODUCTS

LAYERS = {
    'plain': nn.Conv2d(6, 4, 3, padding=1, bias=False),
    'strided': nn.Conv2d(6, 4, (3, 1), stride=2, dilation=(2, 1), bias=False),
    'grouped': nn.Conv2d(6, 4, 3, groups=2, bias=False),
    'biased': nn.Conv2d(6, 4, 3, groups=2),
    'depthwise': nn.Conv2d(6, 6, 3, groups=6, bias=False),
    'transposed': nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False),
}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def lowered(trace):
    def run(layer, *images):
        torch.manual_seed(0)
        lowering = Lowering(trace(nn.Sequential(layer)))
        for image in images:
            lowering.run(image)
        (unit,) = (unit for unit in lowering.plan.units if unit.kind in PRODUCTS)
        return lowering, unit

    return run


@pytest.mark.parametrize('name', [name for name in LAYERS if name not in ('biased', 'transposed')])
def test_weights_times_columns_are_the_output(lowered, name):
    x = drawn(2, 6, 9, 7)
    lowering, unit = lowered(LAYERS[name], x)
    columns = columns_of(unit, x)
    rows = unit.layer.weight.flatten(1).view(columns.shape[0], -1, columns.shape[1])
    found = (rows @ columns).flatten(0, 1)
    places = lowering.run(x).flatten(2)
    # Columns lie image by image.
    torch.testing.assert_close(found, places.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-4)


def test_columns_of_a_linear_layer(lowered):
    x = drawn(5, 7, 6)
    _, unit = lowered(nn.Linear(6, 3), x)
    assert torch.equal(columns_of(unit, x)[0], x.flatten(0, 1).T)


def test_a_transposed_convolution_has_none(lowered):
    x = drawn(1, 6, 5, 5)
    lowering, unit = lowered(LAYERS['transposed'], x)
    found = measured(lowering, x)
    assert columns_of(unit, x) is None
    assert found.blocks(unit.target) is None
    lowering.weigh(found, 1e-4)
    assert lowering.weights.of(unit)[0].dtype == torch.int8


def measured(lowering, *images) -> Moments:
    found = lowering.moments()
    with lowering.executing(found):
        for image in images:
            lowering.run(image)
    return found


def test_moments_are_those_of_all_images(lowered):
    images = [drawn(2, 6, 9, 7, seed=seed) for seed in range(3)]
    lowering, unit = lowered(LAYERS['biased'], *images)
    found = measured(lowering, *images)
    columns = torch.cat([columns_of(unit, image) for image in images], 2).double()
    squares = columns.square().mean(2)
    (block,) = found.blocks(unit.target)
    assert torch.equal(block.order, squares.argsort(1, descending=True))
    last = squares.gather(1, block.order)[:, -1] + 0.1 * squares.mean(1)
    torch.testing.assert_close(block.left[:, -1].double(), last, rtol=1e-4, atol=0)
    assert found.blocks(unit.target)[0] is block
    rows = unit.layer.weight.flatten(1).double().view(2, 2, -1)
    power = (rows @ columns).square().mean(2).flatten()
    torch.testing.assert_close(found.powers[unit.target], power, rtol=1e-4, atol=0)


def test_of_many_places_some_are_looked_at(lowered, monkeypatch):
    monkeypatch.setattr(module, 'PLACES', 30)
    x = drawn(1, 6, 24, 20)
    _, unit = lowered(LAYERS['plain'], x)
    columns = columns_of(unit, x)
    assert columns.shape == (1, 54, 6 * 5)
    _, unit = lowered(nn.Linear(6, 3), x.movedim(1, 3))
    assert columns_of(unit, x.movedim(1, 3)).shape == (1, 6, 30)


def test_outputs_err_less_than_with_codes_that_count_alone(lowered):
    """A layer whose inputs are blurred, so that neighbours belong together."""
    blur = nn.AvgPool2d(3, 1, 1)
    images = [blur(blur(drawn(2, 6, 24, 20, seed=seed))) for seed in range(3)]
    torch.manual_seed(0)
    lowering, unit = lowered(nn.Conv2d(6, 8, 3, bias=False), *images)
    found = measured(lowering, *images)
    weight = unit.layer.weight.detach()
    columns = columns_of(unit, images[0])[0]

    def error():
        return float(((lowering.weights.values(unit) - weight).flatten(1) @ columns).square().sum())

    lowering.weigh(found, 1e-4)
    together = error()
    found.blocks = lambda path: None
    lowering.weigh(found, 1e-4)
    assert together < 0.5 * error()
