"""Lost and gained boxes of known detections, and the distribution of known weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmclipq.analysis.changes import Boxes, changes, find_objects, most_changed
from mmclipq.analysis.weights import weight_histogram
from mmclipq.evaluation.coco import Detections

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)


def boxes(*corners, labels=None) -> Boxes:
    count = len(corners)
    labels = np.zeros(count, int) if labels is None else np.array(labels)
    given = np.array(corners, float).reshape(-1, 4)
    return Boxes(given, labels, np.ones(count), np.zeros(count, bool))


def test_every_object_is_found_once_by_a_box_of_its_class():
    objects, labels = np.array([A, B]), np.array([0, 1])
    near = (0.0, 0.0, 10.0, 8.0)
    assert find_objects(objects, labels, boxes(near, A, B)).tolist() == [0, -1, -1]
    assert find_objects(objects, labels, boxes(B, near, labels=[1, 0])).tolist() == [1, 0]
    assert find_objects(objects, labels, boxes((0, 0, 10, 4.9))).tolist() == [-1]
    assert find_objects(objects[:0], labels[:0], boxes(A)).tolist() == [-1]
    assert find_objects(objects, labels, boxes()).tolist() == []


def detections(image, *found) -> Detections:
    corners = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in found], np.float32)
    return Detections(image, corners, scores, np.zeros(len(found), int))


@pytest.fixture
def three_images():
    """Stand-ins for images with the objects A, B and C each."""

    def objects(image):
        sides = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (A, B, C)]
        return [{'bbox': side, 'category_id': 7} for side in sides]

    return SimpleNamespace(
        ids=['a', 'b', 'c'], categories=[7], objects=objects, path=lambda image: f'{image}.jpg'
    )


def test_lost_and_gained_objects_and_their_images(three_images):
    first = [
        detections('a', (A, 0.9), (B, 0.8), (C, 0.4)),
        detections('b', (A, 0.9), (B, 0.2)),
        detections('c', (A, 0.9)),
    ]
    second = [
        detections('a', (C, 0.9), (A, 0.2)),
        detections('b', (A, 0.6), (B, 0.5), (C, 0.5)),
        detections('c', (A, 0.9)),
    ]
    found = changes(three_images, first, second, 0.3)
    assert [(c.lost, c.gained) for c in found] == [((0, 1), ()), ((), (1, 2)), ((), ())]
    assert found[0].objects.right.tolist() == [False, False, True]
    assert found[0].second.right.tolist() == [True]  # below 0.3 nothing is shown
    losing, gaining = most_changed(found, 3)
    assert [c.image for c in losing] == ['a']
    assert [c.image for c in gaining] == ['b']


def test_octaves_of_known_weights():
    weights = torch.tensor([1.0, -0.5, 0.5, 0.25, 0.2, -0.126, 0.125, 0.0])
    found = weight_histogram([weights[:3], weights[3:].view(1, 5)])
    assert found.count == 8
    # (0.5, 1], (0.25, 0.5], (0.125, 0.25], (0.0625, 0.125], and the zero.
    assert dict(found.octaves) | {-40: 1} == {0: 1, -1: 2, -2: 3, -3: 1, -40: 1} | dict.fromkeys(
        range(-39, -3), 0
    )
    exponent, share, held = found.shares[-1]
    assert (exponent, share, held) == (0, 1 / 8, 1.0)
    assert sum(found.bars) == 8
    assert found.limit == 1.0


def test_rare_octaves_at_the_lower_end_are_one():
    weights = torch.cat([torch.full((99_999,), 0.75), torch.tensor([1e-9])])
    found = weight_histogram([weights])
    assert found.octaves == ((0, 100_000),)
