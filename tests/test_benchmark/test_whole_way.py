"""The way from encoded images to boxes: what is timed is what the detector itself predicts."""

from contextlib import ExitStack

import mmcv
import pytest
import torch
from mmengine.dataset import pseudo_collate

from mmclipq._compat import as_detector
from mmclipq.apis import build_detector, quantize
from mmclipq.benchmark.parts import FloatWay
from mmclipq.benchmark.peers import Subject, save_ours, save_state
from mmclipq.benchmark.whole_way import (
    STAGES,
    array_pipeline,
    float_way,
    measure_ways,
    read_images,
    time_ways,
    ways_table,
)
from mmclipq.errors import ClipQError
from mmclipq.lowering.capture import capture
from mmclipq.ops.cpu.library import why_unavailable


@pytest.fixture
def subject(finder, digits_root):
    """A small detector with weights that find boxes, and images."""
    cfg, stock = finder
    model = build_detector(cfg.model, random=True).eval()
    model.load_state_dict(stock.state_dict())
    pipeline = array_pipeline(cfg)
    encoded, ready = read_images(digits_root / 'JPEGImages', 3, stock, pipeline)
    return Subject(cfg, stock, model, quantize(model, ready), ready), encoded, pipeline


def test_boxes_are_those_of_the_detector_itself(subject):
    subject, encoded, pipeline = subject
    part = capture(subject.stock)

    def outputs(images):
        with torch.no_grad():
            return FloatWay().executed(subject.dense_part())(images)

    with ExitStack() as stack:
        state = subject.stock.state_dict()
        given = subject.cfg, state, subject.image, pipeline
        ways = [float_way(*given, None, stack), float_way(*given, outputs, stack)]
        for content in encoded:
            data = pseudo_collate([pipeline(mmcv.imfrombytes(content))])
            with torch.no_grad():
                (wanted,) = as_detector(subject.stock).test_step(data)
            for way in ways:
                stages, found = way.run(content)
                assert list(stages) == list(STAGES)
                assert min(stages.values()) >= 0
                assert len(found) == len(wanted.pred_instances) > 0
                assert torch.allclose(found.bboxes, wanted.pred_instances.bboxes)
    assert part.head == 'bbox_head'


@pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')
def test_rows_and_their_table(subject, tmp_path):
    subject, encoded, pipeline = subject
    files = {'torch': save_state(subject, tmp_path), 'mmclipq': save_ours(subject, tmp_path)}
    files['openvino'] = tmp_path / 'nothing.xml'
    rows, left = measure_ways(subject, files, encoded, pipeline, 1, 2)
    assert list(left) == ['openvino']
    assert [row.name for row in rows] == ['torch', 'mmclipq']
    for row in rows:
        assert len(row.all) == 2 * len(encoded)
        assert row.boxes > 0
        assert row.median <= row.slow
        assert set(row.as_dict()['stages']) == set(STAGES)
    lines = ways_table(rows, 'three images').splitlines()
    assert len(lines) == 4
    assert len({line.count('|') for line in lines}) == 1


def test_the_network_is_told_from_what_is_around_it():
    class Slept:
        def run(self, encoded):
            return dict.fromkeys(STAGES, 0.001) | {'network': 0.004}, [encoded]

    (row,) = time_ways({'one': Slept()}, [b'', b''], 3, pause=0)
    assert row.stages['network'] == pytest.approx(4)
    assert row.around == pytest.approx(1)
    assert row.boxes == 2
    assert len(row.all) == 6


def test_a_folder_without_images_is_told(subject, tmp_path):
    subject, _, pipeline = subject
    with pytest.raises(ClipQError, match=r'found no \.jpg or \.png file, wanted images'):
        read_images(tmp_path, 3, subject.stock, pipeline)
