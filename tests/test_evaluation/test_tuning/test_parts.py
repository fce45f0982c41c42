"""Distance of detections, choice of the fewest, and results that outlive an interruption."""

import itertools

import numpy as np
import pytest

from mmclipq.evaluation.coco import Detections
from mmclipq.evaluation.tuning.budget import fewest
from mmclipq.evaluation.tuning.distance import distance, overlaps
from mmclipq.evaluation.tuning.search import is_nearer
from mmclipq.evaluation.tuning.state import Progress


def detections(*rows):
    """From rows of x1, y1, x2, y2, score, label."""
    table = np.array(rows, float).reshape(-1, 6)
    return Detections(0, table[:, :4], table[:, 4], table[:, 5].astype(int))


ONE = detections([0, 0, 10, 10, 0.8, 1])


def test_overlap_of_known_boxes():
    first = np.array([[0, 0, 10, 10], [20, 20, 20, 30]], float)
    second = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [50, 50, 60, 60]], float)
    np.testing.assert_allclose(overlaps(first, second), [[1 / 3, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ('found', 'wanted'),
    [
        (ONE, 0.0),
        (detections(), 1.0),
        (detections([0, 0, 10, 10, 0.6, 1]), 0.25),
        (detections([0, 0, 10, 5, 0.8, 1]), 0.5),
        (detections([0, 0, 10, 10, 0.8, 2]), 2.0),
        (detections([0, 0, 10, 10, 0.8, 1], [40, 40, 50, 50, 0.4, 1]), 1.5 - 1),
        # The better one of two is the partner, the other one is too much.
        (detections([0, 0, 10, 9, 0.2, 1], [0, 0, 10, 10, 0.8, 1]), 0.25),
        # Never more than if both stood alone.
        (detections([9, 9, 19, 19, 0.1, 1]), pytest.approx(1.0, abs=0.13)),
    ],
)
def test_distance_of_known_detections(found, wanted):
    assert distance([found], [ONE]) == pytest.approx(wanted)


def test_distance_is_over_all_images():
    assert distance([ONE, detections()], [ONE, ONE]) == pytest.approx(0.5)
    assert distance([detections()], [detections()]) == 0


@pytest.mark.parametrize('count', range(7))
def test_the_fewest_that_are_enough(count):
    """Against every choice there is, where names have weights that must add up."""
    rng = np.random.default_rng(count)
    names = [f'layer{index}' for index in range(6)]
    for _ in range(20):
        weights = dict(zip(names, rng.integers(0, 5, len(names)), strict=True))
        ranked = sorted(names, key=lambda name: -weights[name])
        goal = sum(sorted(weights.values())[::-1][:count])
        asked = []

        def enough(chosen, weights=weights, goal=goal, asked=asked):
            asked.append(tuple(chosen))
            return sum(weights[name] for name in chosen) >= goal

        found = fewest(ranked, enough)
        least = min(
            size for size in range(len(names) + 1)
            for choice in itertools.combinations(names, size) if enough(choice)
        )  # fmt: skip
        assert len(found) == least
        assert enough(found)
    assert fewest(names, lambda chosen: False) is None


def test_what_can_be_spared_is_taken_back():
    """A promising name that helps nothing does not stay."""
    found = fewest(['a', 'b', 'c', 'd'], lambda chosen: {'b', 'd'} <= set(chosen))
    assert found == ['b', 'd']


def test_results_outlive_an_interruption(tmp_path):
    path = tmp_path / 'a.progress'
    first = Progress(path, 'mark')
    assert first.resumed == 0
    first['one'] = [1, 2.5, [True]]
    first['two'] = {'x': None}
    again = Progress(path, 'mark')
    assert again.resumed == 2
    assert 'one' in again
    assert again['one'] == [1, 2.5, [True]]
    other = Progress(path, 'another')
    assert other.resumed == 0
    assert 'one' not in other
    path.write_text('{"of": "mark", "found"')
    assert Progress(path, 'mark').resumed == 0
    other.done()
    assert not path.exists()
    assert not list(tmp_path.iterdir())
    Progress()['nothing'] = 'kept'


@pytest.mark.parametrize(
    ('found', 'wanted'),
    [
        ([0.9, 1.85, 2.8, 3.75], True),  # each image gains
        ([0.9, 1.9, 2.9, 3.9], True),
        ([0.0, 2.1, 3.1, 4.1], False),  # one image alone
        ([1.0, 2.0, 3.0, 4.0], False),
        ([0.9999, 1.9999, 2.9999, 3.9999], False),  # too little
        ([0.1, 0.1], False),  # ended early
        ([1.1, 2.1, 3.1, 4.1], False),
    ],
)
def test_what_is_nearer_beyond_luck(found, wanted):
    assert is_nearer(found, [1.0, 2.0, 3.0, 4.0]) is wanted


def test_noise_is_hardly_ever_nearer():
    """Several hundred trials without any real gain, as one search makes them."""
    rng = np.random.default_rng(0)
    best = rng.uniform(0.5, 2, 16)
    taken = sum(is_nearer(best + rng.normal(0, 0.2, 16), best) for _ in range(1000))
    assert taken <= 3
    assert is_nearer(best * 0.9 + rng.normal(0, 0.02, 16), best)


def test_one_image_is_all_there_is():
    assert is_nearer([0.5], [1.0])
    assert not is_nearer([1.0], [1.0])
