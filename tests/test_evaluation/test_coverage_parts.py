"""What tools/coverage.py is made of: images, fresh detectors and measures, on known answers."""

from pathlib import Path

import mmdet
import pytest
import torch
from torch import nn

from mmclipq.errors import ClipQError
from mmclipq.evaluation.coverage.fresh import (
    annotated,
    fixed_size,
    fresh_detector,
    number_of_classes,
    trial_config,
)
from mmclipq.evaluation.coverage.measure import (
    Choices,
    Work,
    decibels,
    noise_ratios,
    raw_outputs,
)
from mmclipq.evaluation.coverage.synthetic import synthetic_batch

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


def test_synthetic_batch_has_boxes_around_its_masks():
    batch = synthetic_batch(64, classes=3, count=2, seed=5)
    again = synthetic_batch(64, classes=3, count=2, seed=5)
    other = synthetic_batch(64, classes=3, count=2, seed=6)
    for image, same, different in zip(*(b['inputs'] for b in (batch, again, other)), strict=True):
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.uint8
        assert image.float().std() > 10
        assert torch.equal(image, same)
        assert not torch.equal(image, different)
    for sample in batch['data_samples']:
        instances = sample.gt_instances
        assert int(instances.labels.min()) >= 0
        assert int(instances.labels.max()) < 3
        for box, mask in zip(instances.bboxes, instances.masks.masks, strict=True):
            left, top, right, bottom = map(int, box)
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
        (semantic,) = sample.gt_sem_seg.sem_seg
        assert set(semantic.unique().tolist()) <= {0, *instances.labels.tolist()}
    bare = synthetic_batch(64, 3, 1, seed=5, masks=False, semantic=False)['data_samples'][0]
    assert 'masks' not in bare.gt_instances
    assert 'gt_sem_seg' not in bare


@pytest.mark.parametrize(
    ('name', 'size', 'classes', 'wanted'),
    [
        ('ssd/ssd300_coco.py', 300, 80, (False, False)),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', None, 80, (True, False)),
        ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', None, 80, (True, True)),
        ('crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py', None, 1, (False, False)),
    ],
)
def test_config_tells_what_images_must_have(name, size, classes, wanted):
    cfg = trial_config(str(CONFIGS / name))
    assert fixed_size(cfg) == size
    assert number_of_classes(cfg) == classes
    assert tuple(annotated(cfg).values()) == wanted


def test_trial_config_needs_no_download_and_keeps_few_boxes():
    text = str(trial_config(str(CONFIGS / 'ld/ld_r18-gflv1-r101_fpn_1x_coco.py')).model)
    assert "'teacher_ckpt': None" in text
    model = trial_config(str(CONFIGS / 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py')).model
    assert 'SyncBN' not in str(model)
    assert model.data_preprocessor.batch_augments is None
    model = trial_config(str(CONFIGS / 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')).model
    assert (model.test_cfg.rcnn.score_thr, model.test_cfg.rcnn.max_per_img) == (0.0, 20)
    assert (model.test_cfg.rpn.nms_pre, model.test_cfg.rpn.max_per_img) == (100, 50)
    assert model.train_cfg.rpn_proposal.max_per_img == 50
    path = str(CONFIGS / 'queryinst/queryinst_r50_fpn_1x_coco.py')
    found = [trial_config(path, few).model.test_cfg.rcnn.max_per_img for few in (True, False)]
    assert found == [20, 100]


def test_config_without_a_model_is_refused(tmp_path):
    (tmp_path / 'none.py').write_text('a = 1\n')
    with pytest.raises(ClipQError, match='found no model section'):
        trial_config(str(tmp_path / 'none.py'))


@pytest.fixture(scope='module')
def retinanet():
    """A fresh RetinaNet and the two images that settled it."""
    cfg = trial_config(str(CONFIGS / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'))
    batch = synthetic_batch(64, 80, 2, seed=0)
    model, settled = fresh_detector(cfg, batch, seed=0)
    assert settled
    return model, model.data_preprocessor(batch, False)


def test_fresh_detector_keeps_activations_in_range(retinanet):
    model, data = retinanet
    stages = []
    handles = [
        layer.register_forward_hook(lambda m, args, out: stages.append(out.std()))
        for layer in (model.backbone.layer1, model.backbone.layer2, model.backbone.layer4)
    ]
    with torch.no_grad():
        model.extract_feat(data['inputs'])
    for handle in handles:
        handle.remove()
    assert len(stages) == 3
    assert all(0.1 < float(std) < 10 for std in stages)
    # Residual branches are weaker than what they are added to.
    last, first = model.backbone.layer1[0].bn2, model.backbone.layer1[0].bn1
    assert 0.1 <= float(last.weight.min()) < float(last.weight.max()) <= 0.3
    assert float(first.weight.min()) > 0.3
    norm = model.backbone.bn1
    assert norm.running_mean.any()
    assert len(norm.weight.unique()) > 1
    assert norm.momentum == 0.1
    assert not model.training


def test_same_seed_gives_the_same_detector(retinanet):
    model, _ = retinanet
    cfg = trial_config(str(CONFIGS / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'))
    again, _ = fresh_detector(cfg, synthetic_batch(64, 80, 2, seed=0), seed=0)
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Mixture(nn.Module):
    """A convolution called twice, a transposed one, attention, and a product of activations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, groups=1)
        self.up = nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.unused = nn.Linear(8, 8)
        self.embedding = nn.Embedding(5, 8)

    def forward(self, x):
        rows = self.conv(x)
        self.conv(self.up(rows)[..., ::2, ::2])
        tokens = self.norm(rows.flatten(2).mT)
        tokens = tokens + self.embedding(torch.arange(1))
        self.attention(tokens, tokens, tokens, need_weights=True)
        return tokens @ tokens.mT


def test_work_counts_multiply_adds_and_the_weights_that_run():
    model, size = Mixture().eval(), 4
    with torch.no_grad(), Work(model) as work:
        model(torch.rand(1, 3, size, size))
    n = size * size
    conv, up = n * 8 * 3 * 9, n * 8 * 3 * 4
    projections = 4 * n * 8 * 8
    assert work.of_layers == 2 * conv + up + projections
    assert work.of_activations == 2 * n * n * 8 + n * n * 8
    assert sum(work.weights.values()) == 8 * 3 * 9 + 8 * 3 * 4 + 4 * 8 * 8
    assert not model.conv._forward_hooks
    assert type(model.attention) is nn.MultiheadAttention


class Twice(nn.Module):
    """One weight at two dilations, whose results come as a list."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 3, 1, 1))

    def forward(self, x):
        return [nn.functional.conv2d(x, self.weight), nn.functional.conv2d(x[..., 1:], self.weight)]


def test_work_counts_every_result_of_a_layer():
    with torch.no_grad(), Work(layer := Twice()) as work:
        layer(torch.rand(1, 3, 4, 5))
    assert work.of_layers == 2 * 3 * (4 * 5 + 4 * 4)
    assert work.of_activations == 0


def test_noise_is_relative_to_the_variance():
    wanted = torch.tensor([0.0, 2.0, 0.0, 2.0]) + 100
    (ratio,) = noise_ratios([wanted], [wanted + 0.1])
    assert ratio == pytest.approx(0.01, rel=1e-3)
    assert decibels(ratio) == pytest.approx(20.0, abs=1e-2)
    assert decibels(0.0) == 150.0
    assert noise_ratios([torch.ones(3)], [torch.zeros(3)]) == []
    with pytest.raises(ValueError, match=r'shapes \[\(3,\)\], wanted \[\(4,\)\]'):
        noise_ratios([wanted], [torch.zeros(3)])


def test_choices_are_repeated():
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    choices = Choices()
    with choices.of(nn.Module()):
        assert torch.topk(scores, 2, dim=1)[1].tolist() == [[0, 2]]
        assert scores.topk(1).indices.tolist() == [[0]]
    with choices.repeat().of(nn.Module()):
        values, indices = torch.topk(-scores, 2, dim=1)
        assert (values.tolist(), indices.tolist()) == ([[-3.0, -2.0]], [[0, 2]])
        assert (-scores).topk(1).indices.tolist() == [[0]]
        assert (-scores).topk(1).indices.tolist() == [[1]]  # none is left to repeat


def test_regions_of_the_first_run_are_repeated(retinanet):
    model, data = retinanet
    choices = Choices()
    with torch.no_grad():
        with choices.of(model), raw_outputs(model) as wanted:
            first = model.predict(data['inputs'], data['data_samples'])[0].pred_instances.clone()
        with choices.repeat().of(model), raw_outputs(model) as found:
            second = model.predict(-data['inputs'], data['data_samples'])[0].pred_instances
    assert torch.equal(first.bboxes, second.bboxes)
    assert wanted.keys() == {'bbox_head'}
    assert len(wanted['bbox_head']) == 10
    assert not torch.equal(wanted['bbox_head'][0], found['bbox_head'][0])
    assert 'predict' not in vars(model.bbox_head)
