"""Curves over threads, batches, sizes and boxes."""

import pytest
import torch
from mmengine.config import Config

from mmclipq.apis import quantize
from mmclipq.benchmark import sweep as module
from mmclipq.benchmark.peers import Subject, save_ours
from mmclipq.benchmark.sweep import PANELS, Curve, draw_curves, sweep
from mmclipq.benchmark.whole_way import array_pipeline, read_images
from mmclipq.errors import ClipQError
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline.heads import FastDenseHead


@pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')
def test_curves_of_a_file(finder, digits_root, tmp_path, monkeypatch):
    cfg, stock = finder
    encoded, ready = read_images(digits_root / 'JPEGImages', 2, stock, array_pipeline(cfg))
    path = save_ours(Subject(cfg, stock, stock, quantize(stock, ready), ready), tmp_path)
    monkeypatch.setattr(module, 'BATCHES', (1, 3))
    monkeypatch.setattr(module, 'SIZES', (64, 96))
    monkeypatch.setattr(module, 'THRESHOLDS', (0.9, 0.01))
    ways, made = [], module.ours
    monkeypatch.setattr(module, 'ours', lambda *given: ways.append(made(*given)) or ways[0])
    before = torch.get_num_threads()
    curves = sweep(path, cfg, encoded, [1], 1)
    torch.set_num_threads(before)
    assert [(c.panel, c.name) for c in curves] == [
        ('throughput', '1 thread'),
        ('size', 'network'),
        ('size', 'bytes to boxes'),
        ('boxes', 'compiled'),
        ('boxes', "MMDetection's code"),
    ]
    assert all(len(c.x) == len(c.y) == 2 and min(c.y) > 0 for c in curves)
    network, whole = curves[1:3]
    assert all(n < w for n, w in zip(network.y, whole.y, strict=True))
    quick, stock_boxes = curves[3:]
    assert quick.x == stock_boxes.x  # the same boxes
    assert quick.x[0] < quick.x[1]
    head = ways[0].detector.bbox_head
    assert isinstance(head, FastDenseHead)
    assert head.test_cfg.max_per_img == cfg.model.test_cfg.max_per_img
    assert head.test_cfg.score_thr == cfg.model.test_cfg.score_thr
    draw_curves(curves, tmp_path / 'curves.png', 'title')
    assert (tmp_path / 'curves.png').read_bytes()[:4] == b'\x89PNG'
    assert not list(tmp_path.glob('.*part'))


def test_every_panel_is_drawn(tmp_path):
    draw_curves([Curve(p, 'a', [1, 2], [3.0, 4.0]) for p in PANELS], tmp_path / 'a.png', '')
    assert (tmp_path / 'a.png').is_file()


def test_a_pipeline_that_does_not_resize_is_told():
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type='PackDetInputs')]))))
    with pytest.raises(ClipQError, match='without Resize'):
        module._scaled(cfg, 64)
