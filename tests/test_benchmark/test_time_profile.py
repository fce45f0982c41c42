"""Steps of a prediction add up to the whole, and nothing stays patched."""

import sys

import pytest
import torch
from mmdet.models.dense_heads import base_dense_head

from mmclipq.benchmark.time_profile import (
    DECODING,
    DENSE,
    NMS,
    REST,
    profile_prediction,
    profile_table,
)
from mmclipq.detector import plain_samples, to_int8


def test_steps_add_up(model, quantized, monkeypatch):
    detector = to_int8(model, quantized)
    detector.bbox_head.test_cfg.score_thr = 0.0
    images = torch.randn(1, 3, 64, 64)
    nms, run = base_dense_head.batched_nms, detector.int8_backend.run
    now = [0.0]  # a clock on which a look takes a hundredth of a millisecond, the graph 20

    def look():
        now[0] += 1e-5
        return now[0]

    def slow_run(*arguments):
        now[0] += 0.02
        return run(*arguments)

    monkeypatch.setattr(detector.int8_backend, 'run', slow_run)
    before = detector.int8_backend.run
    times = []

    def predict():
        start = look()
        detector.predict(images, plain_samples(images))
        times.append(1000 * (look() - start))

    steps = profile_prediction(detector, predict, 3, look)
    assert {DENSE, DECODING} <= set(steps) <= {DENSE, NMS, DECODING, REST}
    assert steps[DENSE] >= 20
    assert all(ms >= 0 for ms in steps.values())
    assert sum(steps.values()) == pytest.approx(sorted(times[2:])[1], rel=0.1)
    assert detector.int8_backend.run is before
    assert base_dense_head.batched_nms is nms
    assert not [m for m in sys.modules.values() if 'profile' in str(vars(m).get('batched_nms'))]


def test_table_shows_shares():
    lines = profile_table({DENSE: 30.0, REST: 10.0}, 'title').splitlines()
    assert lines[0] == '| title | ms | share |'
    assert lines[2:] == [f'| {DENSE} | 30.0 | 75% |', f'| {REST} | 10.0 | 25% |']
