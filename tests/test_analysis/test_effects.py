"""What a layer alone does to the detections."""

import math

import numpy as np
import pytest

from mmclipq.analysis.effects import agreement_lost, ap_alone, shown_from, suspects_first
from mmclipq.analysis.int8_layers import Int8Layers
from mmclipq.evaluation.coco import Detections


def detections(*scores: float) -> Detections:
    count = len(scores)
    return Detections(1, np.zeros((count, 4)), np.array(scores), np.zeros(count, int))


def test_as_many_boxes_are_shown_as_there_are_objects():
    found = [detections(0.9, 0.2), detections(), detections(0.5, 0.4)]
    assert shown_from(found, 3) == 0.4
    assert shown_from(found, 9) == 0.2
    assert shown_from(found, 0) == 0.9
    assert shown_from([detections()], 3) == math.inf


def test_order_of_suspects():
    lost = {'a': 0.1, 'b': 0.3, 'c': 0.1, 'd': math.nan, 'e': 0.0}
    output = {'a': 30.0, 'b': 40.0, 'c': 20.0, 'd': 10.0, 'e': math.nan}
    assert suspects_first(lost, output) == ['b', 'c', 'a', 'd', 'e']


@pytest.mark.parametrize(
    ('what', 'layer', 'by'),
    [
        ('input', 'backbone.layer3.0.linear_conv.conv', -3),
        ('input', 'bbox_head.convs_pred.2', 3),
        ('weight', 'neck.detect2.conv1.conv', -3),
        ('weight', 'bbox_head.convs_bridge.2.conv', 3),
    ],
)
def test_a_layer_with_an_exponent_off_by_three_comes_first(layers, plant, images, what, layer, by):
    """Among others of all parts of the detector."""
    others = layers.names[::6]
    planted = Int8Layers(layers.model, plant(what, layer, by))
    lost = agreement_lost(planted, images, [*others, layer])
    first, second = sorted(lost, key=lost.get, reverse=True)[:2]
    assert first == layer
    assert lost[first] > 0.05 > lost[second]


def test_ap_of_one_layer_is_measured_against_float(layers, plant, images):
    layer = 'neck.detect3.conv3.conv'
    planted = Int8Layers(layers.model, plant('weight', layer, -3))
    matches = images.match(images.detect(layers.model).detections)
    found = ap_alone(planted, images, [layers.names[0], layer], matches)
    assert list(found) == [layers.names[0], layer]
    worst = found[layer]
    assert worst.name == 'AP'
    assert worst.first > 0.9
    assert worst.second < worst.first - 0.5
    assert worst.verdict == 'worse'
    assert abs(found[layers.names[0]].difference) < 0.05
