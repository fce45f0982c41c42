"""Signal, noise and clipping of known tensors and of planted faults."""

import math

import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.analysis.int8_layers import Int8Layers
from mmclipq.analysis.signals import Ratio, Share, measure_signals, saturates
from mmclipq.backends import build_backend

LAYER = 'neck.detect1.conv2.conv'


def test_decibels_of_known_energies():
    ratio = Ratio()
    assert math.isnan(ratio.decibels)
    ratio.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]))
    assert ratio.decibels == math.inf
    ratio.add(torch.tensor([0.0]), torch.tensor([0.5]))
    assert ratio.decibels == pytest.approx(20)
    assert Ratio(0.0, 1.0).decibels == -math.inf


@pytest.mark.parametrize(
    ('kind', 'inside', 'outside'),
    [
        ((0, True, 0), (-128.5, 127.5), (-128.51, 127.51)),
        ((0, False, 0), (-0.5, 255.5), (-0.51, 255.51)),
        ((0, False, 16), (-16.5, 239.5), (-16.51, 239.51)),
    ],
)
def test_saturation_begins_half_a_step_beyond_the_last_code(kind, inside, outside):
    step = fp.step(*kind[:2])
    assert not saturates(torch.tensor(inside) * step, *kind).any()
    assert saturates(torch.tensor(outside) * step, *kind).all()


def test_saturation_of_channels():
    weight = torch.tensor([[1.0, -1.0], [1.0, 0.1]])
    found = saturates(weight, torch.tensor([0, -1]))
    assert found.tolist() == [[True, False], [True, False]]  # 127/128 is the largest value
    share = Share()
    assert math.isnan(share.share)
    share.add(found)
    assert share.share == 0.5


def test_a_range_too_small_clips_and_one_too_large_adds_noise(layers, plant, parts, images):
    def measured(given):
        backend = build_backend('auto', given.graph, layers.model)
        batches = images.sample(2).batches()
        return measure_signals(Int8Layers(layers.model, given), batches, backend)

    healthy, small, large = (
        measured(given) for given in (parts, plant('input', LAYER, -3), plant('input', LAYER, 3))
    )
    assert healthy[LAYER].output.decibels > 25
    assert healthy[LAYER].clipped_inputs.share < 0.01 < small[LAYER].clipped_inputs.share
    assert large[LAYER].clipped_inputs.share == 0
    for found in (small, large):
        assert found[LAYER].output.decibels < healthy[LAYER].output.decibels - 6
        assert found[LAYER].weight.decibels == healthy[LAYER].weight.decibels
        # Layers behind it read its noise in the running detector, layers before it do not.
        names = layers.names
        behind, before = names.index(LAYER) + 1, names.index(LAYER) - 1
        assert found[names[behind]].read.decibels < healthy[names[behind]].read.decibels - 1
        assert found[names[before]].read.decibels == healthy[names[before]].read.decibels
        # What a layer does alone does not depend on the others.
        assert found[names[behind]].output.decibels == healthy[names[behind]].output.decibels
    weights = measured(plant('weight', LAYER, -3))[LAYER]
    assert weights.clipped_weights.share > 0.05 > healthy[LAYER].clipped_weights.share
    assert weights.weight.decibels < 15
