"""Bytes by part, entropy by layer and the plot of AP over size."""

import importlib.machinery
import json
import sys
import types

import pytest
import torch

from mmclipq.errors import ClipQError
from mmclipq.evaluation import storage
from mmclipq.graph import ir
from mmclipq.graph.artifact import Artifact, save_artifact


def artifact(codes):
    count = len(codes)
    constants = {
        'w': codes,
        'e': torch.zeros(count, dtype=torch.int32),
        'm': torch.rand(count, generator=torch.Generator().manual_seed(0)) + 0.5,
        'b': torch.zeros(count),
    }
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Conv('y', kind, 'x', 'w', 'e', 'm', 'b'),
    )
    graph = ir.Int8Graph(nodes, (ir.Ref('y'),), constants)
    return Artifact((graph,), {'p': torch.ones(10)}, {'a': 'b'}, {})


CODES = (torch.arange(16 * 64) % 4).to(torch.int8).view(16, 64, 1, 1)


def test_parts_count_every_value():
    found = {part.name: part for part in storage.parts(artifact(CODES))}
    assert found['codes'].values == found['codes'].raw == CODES.numel()
    for name in ('exponents', 'multipliers', 'biases'):
        assert (found[name].values, found[name].raw) == (16, 64)
    assert found['float parameters'].values == 10
    assert found['other constants'].values == 0
    assert found['multipliers'].packed > found['biases'].packed


def test_entropy_and_zeros():
    (layer,) = storage.layers(artifact(CODES))
    assert (layer.name, layer.weights, layer.zeros) == ('0.w', 1024, 256)
    assert layer.entropy == pytest.approx(2.0)
    assert storage.entropy(torch.zeros(0, dtype=torch.int8)) == 0
    assert storage.entropy(torch.zeros(5, dtype=torch.int8)) == 0


def test_rivals_are_of_the_codes_alone():
    found = storage.rivals(artifact(CODES))
    assert found['int8, not packed'] == 1024
    assert found['order-0 entropy by layer'] == 256


def test_report_names_the_file_and_its_parts(tmp_path):
    size = save_artifact(tmp_path / 'a.clipq', artifact(CODES))
    text = storage.report(tmp_path / 'a.clipq')
    assert text.startswith(f'## a.clipq: {size} bytes')
    assert '| 0.w | 1024 | 25.0% | 2.00 |' in text


def test_plot(tmp_path):
    points = {'rate': [{'size': 0.12, 'AP': 0.4, 'low': 0.39, 'high': 0.42}], 'plain': []}
    (tmp_path / 'p.json').write_text(json.dumps(points))
    storage.plot(storage.read_points(tmp_path / 'p.json'), tmp_path / 'p.png')
    assert (tmp_path / 'p.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
    'text', ['', '[]', '{"a": [{"size": 1}]}', '{"a": [{"size": "1", "AP": 1}]}']
)
def test_points_of_another_kind_are_refused(tmp_path, text):
    (tmp_path / 'p.json').write_text(text)
    with pytest.raises(ClipQError, match='found no points'):
        storage.read_points(tmp_path / 'p.json')


def test_what_nncodec_makes_of_the_float_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'a.clipq'
    save_artifact(path, artifact(CODES))
    weights = {'w': torch.ones(2, 3), 'count': torch.tensor(3)}
    torch.save({'state_dict': weights}, tmp_path / 'float.pth')
    monkeypatch.setattr(storage, 'find_spec', lambda name: None)
    assert 'nncodec' not in storage.report(path, storage.nncodec_bytes(tmp_path / 'float.pth'))
    monkeypatch.undo()

    def encode(tensors, args):
        print('how it talks')
        assert tensors.keys() == {'w'}  # no whole numbers
        return bytes(100 - args['qp'])

    package = types.ModuleType('nncodec')
    package.__spec__ = importlib.machinery.ModuleSpec('nncodec', None)
    package.nn = types.SimpleNamespace(encode=encode)
    monkeypatch.setitem(sys.modules, 'nncodec', package)
    report = storage.report(path, storage.nncodec_bytes(tmp_path / 'float.pth'))
    assert '| nncodec, float checkpoint, qp -32 | 132 | 1.031 |' in report
    assert 'nncodec' not in storage.report(path)
    assert 'how it talks' not in report

    del package.nn
    with pytest.raises(ClipQError, match='nncodec: found that it does not import'):
        storage.report(path, storage.nncodec_bytes(tmp_path / 'float.pth'))
