"""Non-maximum suppression: the boxes of mmcv's own operator, in its order."""

import mmcv.ops
import pytest
import torch

from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline import suppression

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')


def boxes_of(kind: str, count: int):
    generator = torch.Generator().manual_seed(count)
    first = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat([first, first + torch.rand(count, 2, generator=generator) * 60], dim=1)
    scores = torch.rand(count, generator=generator)
    if kind == 'ties':
        boxes, scores = boxes.round(), (scores * 5).round()
    elif kind == 'copies':
        boxes = boxes[torch.arange(count) // 7]
    elif kind == 'empty and turned':
        boxes[::3, 2:] = boxes[::3, :2]
        boxes[1::3] = boxes[1::3][:, [2, 3, 0, 1]]
    elif kind == 'far off':
        boxes *= 1e18
    elif kind == 'not finite':
        boxes[::5, 2] = float('nan')
        boxes[1::5, 3] = float('inf')
        boxes[2::5, 0] = float('-inf')
    return boxes, scores


@pytest.mark.parametrize(
    'kind', ['plain', 'ties', 'copies', 'empty and turned', 'far off', 'not finite']
)
@pytest.mark.parametrize('count', [0, 1, 2, 33, 500])
@pytest.mark.parametrize('offset', [0, 1])
def test_as_mmcv(kind, count, offset):
    boxes, scores = boxes_of(kind, count)
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):
        for most in (-1, 1, 20):
            given = boxes, scores, threshold, offset
            wanted = mmcv.ops.nms(*given, max_num=most)
            found = suppression.nms(*given, max_num=most)
            assert torch.equal(found[1], wanted[1])
            assert torch.equal(found[0].nan_to_num(7.5), wanted[0].nan_to_num(7.5))


def test_an_overlap_at_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # overlap of exactly one half
    scores = torch.tensor([0.9, 0.8])
    assert len(suppression.nms(boxes, scores, 0.5)[1]) == 2
    below = float(torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)))
    assert len(suppression.nms(boxes, scores, below)[1]) == 1


def test_others_are_left_to_mmcv(monkeypatch):
    seen = []
    monkeypatch.setattr(mmcv.ops, 'nms', lambda *args: seen.append(args) or 'mmcv')
    boxes, scores = boxes_of('plain', 4)
    assert suppression.nms(boxes.double(), scores, 0.5) == 'mmcv'
    assert suppression.nms(boxes, scores, 0.5, score_threshold=0.1) == 'mmcv'
    assert len(seen) == 2
