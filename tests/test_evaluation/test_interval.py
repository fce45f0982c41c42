"""Intervals of AP differences: what they say, and how often they hold the true difference."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_pairs import Pair, coverage, draw

from mmclipq.errors import ClipQError
from mmclipq.evaluation.interval import (
    UNSEEN,
    Difference,
    ap_differences,
    difference_table,
    mean_differences,
)


@pytest.fixture(scope='module')
def pair():
    return draw(Pair(lost=0.1), 120, np.random.default_rng(0))


def test_a_detector_does_not_differ_from_itself(pair):
    for row in ap_differences(pair[0], pair[0], resamples=50):
        assert (row.difference, row.low, row.high) == (0, 0, 0)
        assert row.verdict == UNSEEN


def test_clear_loss_is_seen_from_both_sides(pair):
    loss, gain = (ap_differences(*both, resamples=200)[0] for both in (pair, pair[::-1]))
    assert loss.name == 'AP'
    assert loss.low < loss.difference < loss.high < 0
    assert loss.verdict == 'worse'
    assert gain.verdict == 'better'
    assert (gain.low, gain.high) == pytest.approx((-loss.high, -loss.low))


def test_same_seed_same_interval(pair):
    first, again, other = (ap_differences(*pair, resamples=100, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_rows_cover_classes_and_thresholds(pair):
    names = [row.name for row in ap_differences(*pair, resamples=10)]
    assert names == ['AP', 'AP50', 'AP75', *(f'AP of class {k}' for k in range(3))]


def test_sentence_says_when_nothing_can_be_seen():
    row = Difference('AP', 0.5, 0.496, -0.0101, 0.0021)
    assert str(row) == (
        'AP 0.496 against 0.500: -0.004, 95 % interval -0.010 to +0.002: '
        'no difference that these images can show'
    )
    assert '| -0.010 to +0.002 | no difference that these' in difference_table('', [('AP', row)])


def test_one_lost_box_does_not_make_an_endless_interval():
    """Draws without the one image that differs have no error of their own to measure in."""
    first, second = draw(Pair(noise=0), 50, np.random.default_rng(5))
    cells = list(first.cells)
    image = cells[0][0].image[0]
    keep = np.arange(len(cells[0][0].image)) != 0
    cells[0] = (
        replace(
            cells[0][0],
            image=cells[0][0].image[keep],
            hit=cells[0][0].hit[:, keep],
            counted=cells[0][0].counted[:, keep],
        ),
    )
    row = ap_differences(first, replace(first, cells=tuple(cells)))[0]
    assert cells[0][0].positives[image] > 0
    assert row.difference < 0
    assert row.low < row.difference < row.high
    assert row.high - row.low < 8 * abs(row.difference)


def test_one_image_is_refused():
    with pytest.raises(ClipQError, match='found 1 image, wanted at least two'):
        ap_differences(*draw(Pair(), 1, np.random.default_rng(0)))


def test_other_images_are_refused(pair):
    fewer = draw(Pair(), 60, np.random.default_rng(0))
    with pytest.raises(ClipQError, match=r'other images \(120 and 60\)'):
        ap_differences(pair[0], fewer[1])


@pytest.mark.slow
@pytest.mark.parametrize('images', [72, 150])
@pytest.mark.parametrize(
    'pair', [Pair(lost=0.02), Pair(noise=0.03)], ids=['lost boxes', 'noise alone']
)
def test_interval_holds_the_true_difference(pair, images):
    assert 0.93 <= coverage(pair, images, draws=400) <= 0.97


def test_the_mean_of_pairs_lies_between_them_and_one_pair_is_itself(pair):
    other = draw(Pair(lost=0.3), 120, np.random.default_rng(0))
    one, two = (ap_differences(*p, resamples=100)[0] for p in (pair, other))
    mean = mean_differences([pair, other], resamples=100)[0]
    assert mean.difference == pytest.approx((one.difference + two.difference) / 2)
    assert mean.low < mean.difference < mean.high
    assert mean_differences([pair], resamples=100)[0] == one
    # Two seeds that are the same say no more than one.
    same = mean_differences([pair, pair], resamples=100)[0]
    assert (same.low, same.high) == pytest.approx((one.low, one.high))


def test_pairs_on_other_images_are_refused(pair):
    other = draw(Pair(), 60, np.random.default_rng(0))
    with pytest.raises(ClipQError, match='found results on other images'):
        mean_differences([pair, other])
