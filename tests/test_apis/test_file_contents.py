"""A file holds what predicting reads, and nothing that only training or evaluation wants."""

import copy

import pytest
import torch
from mmdet.models.detectors import SingleStageDetector

from mmclipq.apis import load_int8, quantize, save_int8
from mmclipq.graph.artifact import load_artifact


@pytest.fixture
def saved(cfg, float_model, tmp_path):
    """The file of the small detector with a changed config, and that of the stock one."""
    quantized = quantize(float_model, [torch.rand(1, 3, 64, 96)])

    def save(change):
        changed = copy.deepcopy(cfg)
        change(changed)
        paths = tmp_path / 'changed.clipq', tmp_path / 'stock.clipq'
        for path, config in zip(paths, (changed, cfg), strict=True):
            save_int8(path, float_model, quantized, config, {})
        return paths

    return save


def test_loaders_of_special_annotations_are_left_out(saved):
    def change(cfg):
        step = dict(type='LoadPanopticAnnotations')  # wants panopticapi when it is built
        cfg.test_dataloader.dataset.pipeline.insert(2, step)

    changed, stock = (load_artifact(path).config['pipeline'] for path in saved(change))
    assert changed == stock
    load_int8(saved(change)[0])


@pytest.mark.parametrize('scope', ['', 'mmdet.'])
def test_a_teacher_is_left_out(saved, scope):
    def change(cfg):
        cfg.model.type = f'{scope}KnowledgeDistillationSingleStageDetector'
        cfg.model.update(
            teacher_config='configs/teacher.py', teacher_ckpt='t.pth', eval_teacher=True
        )

    distilled, stock = (load_int8(path) for path in saved(change))
    assert isinstance(distilled, SingleStageDetector)
    images = torch.rand(1, 3, 64, 96)
    found, expected = (d.int8_backend.codes(images) for d in (distilled, stock))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
