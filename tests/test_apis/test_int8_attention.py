"""Attention's projections become integer products; nothing of them stays in float."""

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmclipq.apis import build_detector, load_int8, quantize, save_int8
from mmclipq.attention import PROJECTIONS
from mmclipq.backends.base import backend_class
from mmclipq.detector import plain_samples, to_int8
from mmclipq.evaluation.coverage.measure import executions
from mmclipq.graph import ir
from mmclipq.graph.artifact import load_artifact

WIDTH, CLASSES = 16, 3
PACKED = {'in_proj_weight', 'in_proj_bias'}


@MODELS.register_module()
class TokenDetector(BaseDetector):
    """Pixels attend to each other, and learned queries to them; the last columns are padding."""

    def __init__(self, course, data_preprocessor=None, train_cfg=None, test_cfg=None):
        super().__init__(data_preprocessor)
        self.course = course
        self.stem = nn.Conv2d(3, WIDTH, 8, 8)
        self.encoder = MultiheadAttention(WIDTH, 4, batch_first=True)
        self.decoder = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.queries = nn.Embedding(6, WIDTH)
        self.cls, self.reg = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)

    def extract_feat(self, inputs):
        return self.stem(inputs)

    def _forward(self, inputs, samples=None):
        tokens = self.extract_feat(inputs).flatten(2).transpose(1, 2)
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        padding[:, -2:] = True
        tokens = self.encoder(tokens, query_pos=tokens * 0.5, key_padding_mask=padding)
        queries = self.queries.weight.expand(len(tokens), -1, -1)
        options = dict(key_padding_mask=padding) if self.course == 'changing' else {}
        found = self.decoder(queries, tokens, tokens, need_weights=False, **options)[0]
        if self.course == 'changing':  # a second form of the same call
            found = self.decoder(found, tokens, tokens, need_weights=False)[0]
        return self.cls(found), self.reg(found)

    def loss(self, inputs, samples):
        return {'loss': sum(x.square().mean() for x in self._forward(inputs))}

    def predict(self, inputs, samples, rescale=True):
        results = []
        for score, box in zip(*self._forward(inputs), strict=True):
            value, label = score.sigmoid().max(1)
            results.append(InstanceData(bboxes=box, scores=value, labels=label))
        return self.add_pred_to_datasample(samples, results)


def detector(course):
    preprocessor = dict(type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3)
    cfg = Config(
        dict(model=dict(type='TokenDetector', course=course, data_preprocessor=preprocessor))
    )
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0, 0.2)
    return cfg, model


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 32, 40, generator=generator) for _ in range(3)]


def predict(model, x):
    with torch.no_grad():
        samples = model.predict(x, plain_samples(x))
    return torch.stack([sample.pred_instances.bboxes for sample in samples])


@pytest.mark.parametrize('course', ['fixed', 'changing'])
def test_projections_run_in_int8_and_their_float_weights_are_gone(course, tmp_path):
    cfg, model = detector(course)
    wanted = predict(model, images()[0])
    quantized = quantize(model, images())
    names = {node.name for graph in quantized.graphs for node in graph.products()}
    attention = ('encoder.attn', 'decoder')
    layers = {f'{path}.{name}' for path in attention for name in (*PROJECTIONS, 'out_proj')}
    assert layers <= set(quantized.captured)
    assert len(names) >= len(layers) + 3
    path = tmp_path / 'tokens.clipq'
    save_int8(path, model, quantized, cfg, {})
    stored = load_artifact(path).parameters
    assert set(stored) == {'queries.weight'}
    loaded = load_int8(path, backend='reference')
    left = [name for name, value in loaded.named_parameters() if value.dim() > 1]
    assert left == ['queries.weight']
    assert 'SplitAttention' in repr(loaded)
    found = predict(loaded, images()[0])
    assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()
    for backend in ('auto', 'simulated', 'int_mm'):
        assert torch.equal(predict(load_int8(path, backend=backend), images()[0]), found)
    assert torch.equal(predict(to_int8(model, quantized, 'reference'), images()[0]), found)


def test_codes_are_equal_on_every_backend(tmp_path):
    cfg, model = detector('fixed')
    path = tmp_path / 'tokens.clipq'
    save_int8(path, model, quantize(model, images()), cfg, {})
    runs = []
    for name in ('reference', 'auto'):
        kind = backend_class(name)
        with executions(kind) as found:
            predict(load_int8(path, backend=name), images()[1])
        runs.append(found)
    for ours, wanted in zip(*runs, strict=True):
        assert ours.codes.keys() == wanted.codes.keys()
        assert all(torch.equal(ours.codes[key], value) for key, value in wanted.codes.items())
    nodes = [node for run in runs[0] for node in run.graph.nodes]
    assert len([node for node in nodes if isinstance(node, ir.Linear)]) == 10


def test_skipped_projection_keeps_the_packed_weight(tmp_path):
    cfg, model = detector('fixed')
    clipq = dict(rules=[dict(pattern='decoder.k_proj', skip=True)])
    quantized = quantize(model, images(), clipq)
    assert 'is skipped' in str([v for k, v in quantized.left.items() if 'decoder_k_proj' in k])
    path = tmp_path / 'tokens.clipq'
    save_int8(path, model, quantized, cfg, {})
    assert {'decoder.in_proj_weight', 'decoder.in_proj_bias'} <= set(load_artifact(path).parameters)
    loaded = load_int8(path)
    found, wanted = predict(loaded, images()[0]), predict(model, images()[0])
    assert (found - wanted).norm() < 0.1 * wanted.norm()
