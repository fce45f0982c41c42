"""A detector of a project outside mmdet goes the whole way: trained, converted, stored, loaded."""

import importlib
import sys

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from torch import nn

from mmclipq.apis import build_detector, load_int8, quantize, save_int8
from mmclipq.detector import plain_samples, to_int8
from mmclipq.prepare import prepare_model

PACKAGE = '''
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn
from torch.nn import functional as F


@MODELS.register_module()
class ForeignBackbone(nn.Module):
    """Its depth depends on what it sees."""

    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(True)
        )
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU(True),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        while x.shape[-1] > 16:
            x = self.body(x)
        return x


@MODELS.register_module()
class ForeignHead(nn.Module):
    """Goes over the places of the map in a Python loop."""

    def __init__(self, channels, classes):
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.cls, self.reg = nn.Linear(channels, classes), nn.Linear(channels, 4)

    def forward(self, x):
        rows = []
        for column in x.flatten(2).permute(2, 0, 1):
            hidden = F.relu(self.hidden(column), inplace=True)
            rows.append((self.cls(hidden), self.reg(hidden)))
        scores, boxes = zip(*rows)
        return torch.stack(scores, 1), torch.stack(boxes, 1)


@MODELS.register_module()
class ForeignDetector(BaseDetector):
    def __init__(self, backbone, head, data_preprocessor=None, train_cfg=None, test_cfg=None):
        super().__init__(data_preprocessor)
        self.trunk, self.head = MODELS.build(backbone), MODELS.build(head)

    def extract_feat(self, inputs):
        return self.trunk(inputs) * 0.5

    def _forward(self, inputs, samples=None):
        return self.head(self.extract_feat(inputs))

    def loss(self, inputs, samples):
        scores, boxes = self._forward(inputs)
        return {'loss_cls': F.softplus(scores).mean(), 'loss_box': boxes.abs().mean()}

    def predict(self, inputs, samples, rescale=True):
        results = []
        for score, box in zip(*self._forward(inputs)):
            value, label = score.sigmoid().max(1)
            results.append(InstanceData(bboxes=box, scores=value, labels=label))
        return self.add_pred_to_datasample(samples, results)
'''


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    (tmp_path / 'foreign_project.py').write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    if 'foreign_project' not in sys.modules:
        importlib.import_module('foreign_project')
    model = dict(
        type='ForeignDetector',
        backbone=dict(type='ForeignBackbone', channels=8),
        head=dict(type='ForeignHead', channels=8, classes=3),
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3),
    )
    return Config(dict(model=model))


def test_whole_way(cfg, tmp_path):
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True)
    report = prepare_model(model)
    assert not report.left
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 48, 64]] * 2), True)
    loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    optimizer.step()

    images = [torch.rand(1, 3, 48, 64) for _ in range(3)]
    quantized = quantize(model.eval(), images)
    assert quantized.graph is None
    assert [part.path for part in quantized.modules] == [
        'trunk.stem', 'trunk.body', 'head.hidden', 'head.cls', 'head.reg',
    ]  # fmt: skip
    assert set(quantized.left) == {'detector', 'trunk', 'head'}
    with torch.no_grad():
        (wanted,) = model.predict(images[0], plain_samples(images[0]))
    path = tmp_path / 'foreign.clipq'
    save_int8(path, model, quantized, cfg, {'classes': ('a', 'b', 'c')})
    loaded = load_int8(path, backend='reference')
    assert not [m for m in loaded.modules() if isinstance(m, nn.Conv2d) and m._parameters]
    (found,) = loaded.predict(images[0], plain_samples(images[0]))
    assert found.pred_instances.bboxes.shape == (12 * 16, 4)
    error = found.pred_instances.bboxes - wanted.pred_instances.bboxes
    assert error.norm() < 0.2 * wanted.pred_instances.bboxes.norm()
    for backend in ('simulated', 'auto'):
        (again,) = load_int8(path, backend=backend).predict(images[0], plain_samples(images[0]))
        assert torch.equal(again.pred_instances.bboxes, found.pred_instances.bboxes)
    (memory,) = to_int8(model, quantized).predict(images[0], plain_samples(images[0]))
    assert torch.equal(memory.pred_instances.scores, found.pred_instances.scores)
