"""Boxes of the compiled steps: those of MMDetection's own code on the same maps, to the last bit,
with PyTorch's own sort, for batches and any number of threads."""

import copy
import pickle

import pytest
import torch
from dense_heads import DENSE, head_of, metas, model_config, outputs_of, same
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmengine.config import ConfigDict

from mmclipq.ops.cpu import heads as op
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline.decoding import Decoder
from mmclipq.pipeline.plans import _run
from mmclipq.pipeline.switch import use_quick_pipeline

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')

COMPILED = [name for name in DENSE if name not in ('GFL', 'FSAF')]


@pytest.fixture
def threads():
    """Sets PyTorch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def compiled(monkeypatch):
    """Whether the compiled steps made the results of each call."""
    calls = []
    stock = Decoder.__call__

    def call(self, *args, **options):
        found = stock(self, *args, **options)
        calls.append(found is not None)
        return found

    monkeypatch.setattr(Decoder, '__call__', call)
    return calls


def trained_like(name, head, size, batch=1, seed=0):
    """Maps with few high scores, as of a trained head."""
    kinds = outputs_of(name, head, size, batch, seed)
    if name in ('RTMDet', 'YOLOv3', 'SSDLite'):
        kinds[0][:] = [x * 0.8 - (5 if name == 'RTMDet' else 1.5) for x in kinds[0]]
    if name == 'SSDLite':
        for x in kinds[0]:
            x[:, 80::81] += 8
    return kinds


def predict(head, kinds, size, rescale=True):
    with torch.no_grad():
        given = copy.deepcopy(kinds), metas(size, len(kinds[0][0]))
        return head.predict_by_feat(*given[0], batch_img_metas=given[1], rescale=rescale)


def both(head, kinds, size, **options):
    """The head's own results and the quick ones."""
    use_quick_pipeline(head, on=False)
    wanted = predict(head, kinds, size, **options)
    use_quick_pipeline(head)
    return wanted, predict(head, kinds, size, **options)


@pytest.mark.parametrize('name', COMPILED)
@pytest.mark.parametrize(('count', 'batch'), [(1, 1), (2, 2)])
def test_boxes_scores_labels_and_order(name, count, batch, threads, compiled):
    threads(count)
    head, size = head_of(model_config(DENSE[name])), 160 if count == 1 else 128
    for rescale in (True, False):
        wanted, found = both(head, trained_like(name, head, size, batch), size, rescale=rescale)
        assert same(found, wanted)
    assert min(map(len, wanted)) > 5
    assert compiled == [True, True]


@pytest.mark.parametrize('name', COMPILED)
def test_equal_scores_are_chosen_as_pytorch_does(name, compiled):
    head, size = head_of(model_config(DENSE[name])), 160
    kinds = tuple([x.round() for x in kind] for kind in trained_like(name, head, size))
    wanted, found = both(head, kinds, size)
    assert len(wanted[0].scores.unique()) < len(wanted[0])
    assert same(found, wanted)
    assert compiled == [True]


@pytest.mark.parametrize('name', COMPILED)
def test_channels_first_and_maps_of_one_row(name, compiled):
    head = head_of(model_config(DENSE[name]))
    kinds = tuple([x.contiguous() for x in kind] for kind in trained_like(name, head, 64))
    assert same(*both(head, kinds, 64))
    kinds = tuple([x[:, :, :1].contiguous() for x in kind] for kind in kinds)
    assert same(*both(head, kinds, 64))
    several = name in ('YOLOv3', 'YOLOX', 'RetinaNet', 'SSDLite', 'RPN')  # those are copied
    assert compiled == [several, several]


@pytest.mark.parametrize('name', ['YOLOv3', 'YOLOX', 'FCOS', 'SSDLite', 'RetinaNet'])
@pytest.mark.parametrize('level', [-60.0, 60.0])
def test_nothing_found_and_all_saturated(name, level, compiled):
    head, size = head_of(model_config(DENSE[name])), 64
    kinds = trained_like(name, head, size)
    kinds[0][:] = [x * 0.01 + level for x in kinds[0]]
    if name == 'SSDLite':
        for x in kinds[0]:
            x[:, 80::81] = -level
    wanted, found = both(head, kinds, size)
    assert (len(wanted[0]) > 0) == (level > 0 and name != 'SSDLite')  # 80 classes share 1
    assert same(found, wanted)
    assert found[0].labels.dtype == wanted[0].labels.dtype
    assert compiled == [True]


@pytest.mark.parametrize('name', ['YOLOv3', 'FCOS', 'RetinaNet'])
def test_what_is_not_finite_goes_the_old_way(name, compiled):
    head, size = head_of(model_config(DENSE[name])), 96
    kinds = trained_like(name, head, size)
    boxes = kinds[min(1, len(kinds) - 1)]
    place = torch.nonzero(kinds[0][-1][0].amax(0) > 1)[0].tolist()
    boxes[-1][0, :5, place[0], place[1]] = 5.0
    boxes[-1][0, 2 :: 85 if name == 'YOLOv3' else 4, place[0], place[1]] = 1e4
    predict(head, kinds, size)
    use_quick_pipeline(head)
    predict(head, kinds, size)
    kinds[0][-1][0, 5:, place[0], place[1]] = float('nan')
    predict(head, kinds, size)
    assert compiled[-1] is False


@pytest.mark.parametrize(
    ('change', 'goes'),
    [
        ({'score_thr': 0.99}, True),
        ({'nms': {'type': 'nms', 'iou_threshold': 0.3, 'class_agnostic': True}}, True),
        ({'min_bbox_size': 12}, True),
        ({'max_per_img': 7}, True),
        ({'nms': {'type': 'soft_nms', 'iou_threshold': 0.3}}, False),
        ({'nms': {'type': 'nms', 'iou_threshold': 0.3, 'score_threshold': 0.2}}, False),
        ({'nms_pre': -1}, False),
    ],
)
def test_options(change, goes, compiled):
    head, size = head_of(model_config(DENSE['RetinaNet'])), 128
    kinds = trained_like('RetinaNet', head, size)
    before = both(head, kinds, size)[1]
    head.test_cfg = ConfigDict({**head.test_cfg, **change})
    wanted, found = both(head, kinds, size)
    assert same(found, wanted)
    assert not same(wanted, before) or change == {'nms_pre': -1}
    assert compiled == [True, goes]


def test_other_coders_and_their_numbers(compiled):
    class Own(DistancePointBBoxCoder):
        def decode(self, points, pred_bboxes, max_shape=None):
            return super().decode(points, pred_bboxes * 2, max_shape)

    head, size = head_of(model_config(DENSE['FCOS'])), 128
    kinds = trained_like('FCOS', head, size)
    assert same(*both(head, kinds, size))
    head.bbox_coder.clip_border = False  # of a head that is quick already
    found = predict(head, kinds, size)
    assert float(found[0].bboxes.min()) < 0
    assert same(found, both(head, kinds, size)[0])
    head.bbox_coder = Own()
    use_quick_pipeline(head)
    assert head.fast_decoder is None
    assert same(*both(head, kinds, size))
    assert compiled == [True] * 3


def test_without_suppression_the_heads_own_code_runs(compiled):
    head, size = head_of(model_config(DENSE['FCOS'])), 96
    kinds = trained_like('FCOS', head, size)
    use_quick_pipeline(head)
    with torch.no_grad():
        head.predict_by_feat(*kinds, batch_img_metas=metas(size), with_nms=False)
    assert compiled == [False]


def test_a_copy_of_a_head_has_steps_of_its_own():
    head, size = head_of(model_config(DENSE['FCOS'])), 96
    kinds = trained_like('FCOS', head, size)
    wanted = both(head, kinds, size)[1]
    assert same(predict(copy.deepcopy(head), kinds, size), wanted)
    assert isinstance(pickle.loads(pickle.dumps(head.fast_decoder)), Decoder)


def test_inference_mode_leaves_nothing_behind():
    head, size = head_of(model_config(DENSE['RetinaNet'])), 96
    kinds = trained_like('RetinaNet', head, size)
    use_quick_pipeline(head)
    with torch.inference_mode():
        found = predict(head, kinds, size)
    assert same(predict(head, kinds, size), found)


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize(('rows', 'row'), [(1, 31), (1, 33), (1, 40001), (70, 80), (1100, 80)])
def test_items_that_pytorch_computes_alone(rows, row, count, threads):
    """Its sigmoid is that of one item exactly where the run says so, as far as they differ."""
    threads(count)
    x = 5 * torch.randn(rows, row + 5, generator=torch.Generator().manual_seed(row))
    x = x[:, 5:]
    whole = x.sigmoid().flatten()
    single = torch.stack([item.sigmoid() for item in x.flatten()[:, None]]).flatten()
    wide = torch.cat([x.flatten(), torch.zeros(-x.numel() % 32)])
    vector = torch.cat([part.sigmoid() for part in wide.split(16384)])[: x.numel()]
    run = _run(rows * row, 0, row, count)
    assert (single != vector).sum() > 0
    for item in torch.nonzero(single != vector).flatten().tolist():
        assert (whole[item] == single[item]) == alone(run, item)


def alone(run, number):
    """``ClipqRun::alone``, written again."""
    item = run.first + number
    start = max(item - item % run.row, item - item % run.share)
    end = min(item - item % run.row + run.row, item - item % run.share + run.share, run.total)
    return item - start >= (end - start) - (end - start) % run.lanes


@pytest.mark.parametrize('fault', ['lanes', 'scale', 'most'])
def test_a_planted_fault_is_found(fault, monkeypatch):
    head, size = head_of(model_config(DENSE['RetinaNet'])), 160
    kinds = trained_like('RetinaNet', head, size)
    stock = op.find_boxes

    def faulty(steps, maps, limits, scale, scaling):
        if fault == 'lanes':
            for level in range(steps.count):
                steps.levels[level].score_run.lanes = 1 << 40  # all alone
        if fault == 'scale':
            scale = scale[0] * (1 + 2**-23), scale[1]
        if fault == 'most':
            steps.kept = 99
        return stock(steps, maps, limits, scale, scaling)

    monkeypatch.setattr(op, 'find_boxes', faulty)
    wanted, found = both(head, kinds, size)
    assert len(wanted[0]) == 100
    assert not same(found, wanted)
