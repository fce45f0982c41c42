"""Stored matches come back, and the six figures are pycocotools'."""

import contextlib
import io

import numpy as np
import pytest
from simulated_pairs import Pair, draw
from test_matches import CLASSES, coco_eval, make_detections, make_infos

from mmclipq.evaluation.matches import Matches
from mmclipq.experiments.stored import load_matches, save_matches, six_figures


@pytest.mark.parametrize('decimals', [1, 8], ids=['ties', 'no ties'])
def test_six_figures_are_those_of_pycocotools(decimals):
    rng = np.random.default_rng(decimals)
    infos = make_infos(30, rng)
    evaluation = coco_eval(infos, make_detections(infos, rng, decimals))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    matches = Matches.from_coco(evaluation, CLASSES)
    stats = evaluation.stats
    assert six_figures(matches) == pytest.approx([*stats[:3], *stats[6:9]], abs=1e-12)


def test_matches_come_back(tmp_path):
    matches, _ = draw(Pair(), 20, np.random.default_rng(0))
    save_matches(matches, tmp_path / 'a.npz')
    again = load_matches(tmp_path / 'a.npz')
    assert again.images == tuple(map(str, matches.images))
    assert (again.classes, again.areas) == (tuple(matches.classes), tuple(matches.areas))
    for row, other in zip(matches.cells, again.cells, strict=True):
        for cell, same in zip(row, other, strict=True):
            for name in ('image', 'hit', 'counted', 'positives'):
                np.testing.assert_array_equal(getattr(cell, name), getattr(same, name))
    assert six_figures(again) == six_figures(matches)
    assert [path.name for path in tmp_path.iterdir()] == ['a.npz']
