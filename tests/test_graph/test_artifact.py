"""The ``.clipq`` file: exact round trips, refusal of every kind of damage, atomic writes."""

import hashlib
import json
import os
import struct

import pytest
import torch
import zstandard

from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.graph.artifact import (
    Artifact,
    ArtifactError,
    is_artifact,
    load_artifact,
    save_artifact,
    to_json,
    write_atomically,
)

PREFIX = struct.Struct('<8sIQ32s')
CONFIG = {
    'model': {
        'type': 'YOLOV3',
        'sizes': [(26, 48), (32, 51)],
        'scale': (1, (2.5, None)),
        'ratio': float('inf'),
        'empty': [(), [], {}],
        'name': 'é → 模型',
        'flag': True,
    },
    'head': None,
}


def small_artifact():
    constants = {
        'w': torch.arange(-128, 127, dtype=torch.int8).view(85, 3, 1, 1),
        'e': torch.arange(-42, 43, dtype=torch.int32).clamp(-40, 40),
        'm': torch.randn(85, generator=torch.Generator().manual_seed(0)),
        'b': torch.full((85,), -0.0),
    }
    codes = ir.TensorType(-3, False)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', ir.TensorType(0), 'image'),
        ir.Conv('y', codes, 'x', 'w', 'e', 'm', 'b', 'leaky_relu', 0.1, stride=(2, 1)),
        ir.Add('z', codes, 'y', 'y', 'relu'),
        ir.MaxPool('p', codes, 'z', (3, 3), (2, 2), (1, 1), ceil_mode=True),
        ir.Upsample('u', codes, 'p', like='image'),
        ir.Upsample('v', codes, 'p', scale=(2.0, 2.0)),
        ir.Concat('c', codes, ('y', 'z')),
        ir.Dequantize('d', ir.FLOAT, 'c'),
        ir.FloatCall(
            'f',
            ir.FLOAT,
            'function',
            'operator.getitem',
            (ir.Ref('d'), (slice(None), slice(0, None, 2), None)),
            (('dtype', torch.float32), ('like', [ir.Ref('image')])),
            'getitem has no int8 form',
        ),
    )
    outputs = {'head': ((ir.Ref('f'),), [ir.Ref('d'), ir.Ref('u')])}
    parameters = {'neck.weight': torch.randn(2, 2), 'neck.n': torch.tensor(3)}
    graph = ir.Int8Graph(nodes, outputs, constants)
    level = ir.Input('level0', codes)
    second = (
        level,
        ir.Input('rois', ir.FLOAT),
        ir.RoIAlign('r', codes, ('level0',), 'rois', (7, 7), (0.25,)),
        ir.Flatten('f', codes, 'r'),
    )
    box = ir.Int8Graph(second, (ir.Ref('f'),), {'w': torch.ones(2, dtype=torch.int8)})
    return Artifact(
        (graph, box), parameters, CONFIG, {'classes': ('a', 'b'), 'palette': [(1, 2, 3)]}
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'small.clipq'
    torch.manual_seed(0)
    assert save_artifact(path, small_artifact()) == path.stat().st_size
    return path


def test_round_trip(saved):
    torch.manual_seed(0)
    wanted, found = small_artifact(), load_artifact(saved)
    for ours, theirs in zip(found.graphs, wanted.graphs, strict=True):
        assert ours.nodes == theirs.nodes
        assert ours.outputs == theirs.outputs
    assert isinstance(found.graphs[0].outputs['head'][0], tuple)
    assert found.config == CONFIG
    assert isinstance(found.config['model']['sizes'][0], tuple)
    assert isinstance(found.config['model']['empty'][0], tuple)
    assert found.meta == wanted.meta
    assert set(found.versions) == {'mmclipq', 'mmdet', 'mmcv', 'mmengine', 'torch'}
    pairs = [(found.parameters, wanted.parameters)]
    pairs += [(found.graphs[i].constants, wanted.graphs[i].constants) for i in range(2)]
    for tensors, originals in pairs:
        assert set(tensors) == set(originals)
        for key, value in tensors.items():
            assert value.dtype == originals[key].dtype
            assert torch.equal(value, originals[key])
    assert torch.signbit(found.graphs[0].constants['b']).all()


def test_same_content_gives_the_same_bytes(saved, tmp_path):
    again = tmp_path / 'elsewhere' / 'again.clipq'
    torch.manual_seed(0)
    artifact = small_artifact()
    graph, box = artifact.graphs
    constants = dict(reversed(graph.constants.items()))
    artifact.graphs = ir.Int8Graph(graph.nodes, graph.outputs, constants), box
    save_artifact(again, artifact)
    assert again.read_bytes() == saved.read_bytes()
    third = tmp_path / 'third.clipq'
    save_artifact(third, load_artifact(saved))
    assert third.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize('value', [object(), {1, 2}, b'bytes', torch.zeros(2), {'a': [print]}])
def test_only_plain_data_is_stored(value, tmp_path):
    artifact = small_artifact()
    artifact.config = {'model': value}
    with pytest.raises(ArtifactError, match='wanted plain data'):
        save_artifact(tmp_path / 'a.clipq', artifact)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match='of type'):
        to_json(value)


def refusal(path):
    with pytest.raises(ArtifactError) as caught:
        load_artifact(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: found ')
    assert '\n' not in message
    return message


def test_missing_file_and_folder(tmp_path):
    assert 'found no file' in refusal(tmp_path / 'missing.clipq')
    assert 'found no file' in refusal(tmp_path)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04' + bytes(100), b'CLIPQ', b'CLIPQ\n\r\n\0'])
def test_other_files(tmp_path, content):
    path = tmp_path / 'other.clipq'
    path.write_bytes(content)
    assert 'found no .clipq file' in refusal(path)


def test_truncation(saved):
    data = saved.read_bytes()
    lengths = {*range(PREFIX.size + 20), *range(PREFIX.size, len(data), 37), len(data) - 1}
    for length in lengths:
        saved.write_bytes(data[:length])
        wanted = 'found no .clipq file' if length < 8 else 'truncated'
        assert wanted in refusal(saved)


def test_every_byte_of_the_prefix_is_checked(saved):
    data = saved.read_bytes()
    for index in range(PREFIX.size):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            saved.write_bytes(changed)
            refusal(saved)


def test_altered_body(saved):
    data = saved.read_bytes()
    for index in {*range(PREFIX.size, len(data), 29), PREFIX.size, len(data) - 1}:
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        saved.write_bytes(changed)
        assert 'altered' in refusal(saved)
    saved.write_bytes(data + b'\0')
    assert 'altered' in refusal(saved)


@pytest.mark.parametrize('version', [1, 5, 77, 2**32 - 1])
def test_other_version(saved, version):
    data = bytearray(saved.read_bytes())
    data[8:12] = struct.pack('<I', version)
    saved.write_bytes(data)
    message = refusal(saved)
    assert f'found format version {version}, wanted 3; ' in message
    assert message.endswith('export it again' if version == 1 else 'update mmclipq')


def sign(path, body):
    path.write_bytes(
        PREFIX.pack(b'CLIPQ\r\n\0', 3, len(body), hashlib.sha256(body).digest()) + body
    )


def pack(header, blob):
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + blob


def crafted(change):
    """A file with a right checksum whose header or constants ``change`` made wrong."""

    def write(path):
        body = path.read_bytes()[PREFIX.size :]
        (length,) = struct.unpack('<Q', body[:8])
        header, blob = json.loads(body[8 : 8 + length]), body[8 + length :]
        sign(path, change(header, blob))

    return write


def changed_header(**values):
    return crafted(lambda header, blob: pack({**header, **values}, blob))


def changed_graph(**changes):
    """The header with entries of its first graph changed."""
    return crafted(lambda h, b: pack({**h, 'graphs': [{**h['graphs'][0], **changes}]}, b))


CRAFTED = {
    'no length': lambda path: sign(path, b'abc'),
    'empty body': lambda path: sign(path, b''),
    'length beyond the end': crafted(lambda h, b: struct.pack('<Q', 2**63) + b),
    'no JSON': crafted(lambda h, b: struct.pack('<Q', 4) + b'\xff{{{' + b),
    'header a list': crafted(lambda h, b: pack([h], b)),
    'deep header': crafted(lambda h, b: struct.pack('<Q', 200000) + b'[' * 200000 + b),
    'no zstd': crafted(lambda h, b: pack(h, b'not a frame')),
    'no safetensors': crafted(lambda h, b: pack(h, zstandard.compress(b'\1' * 50))),
    'no tensors': crafted(lambda h, b: pack(h, zstandard.compress(b''))),
    'no graphs': changed_header(graphs=[]),
    'graphs of numbers': changed_header(graphs=[1, 2]),
    'no nodes': changed_header(graphs=[{'outputs': []}]),
    'nodes of numbers': changed_graph(nodes=[1, 2]),
    'node of unknown kind': changed_graph(nodes=[{'node': 'System', 'name': 'a', 'type': None}]),
    'node without fields': changed_graph(nodes=[{'node': 'Conv', 'name': 'a', 'type': None}]),
    'node with a field too many': changed_graph(
        nodes=[{'node': 'Input', 'name': 'a', 'type': None, 'b': 1}]
    ),
    'exponent of text': changed_graph(nodes=[{'node': 'Input', 'name': 'a', 'type': ['x', True]}]),
    'unknown output': changed_graph(outputs={'$ref': 'nowhere'}),
    'unknown dtype': changed_header(config={'$dtype': 'no_such'}),
    'dtype that is none': changed_header(config={'$dtype': 'load'}),
    'tuple of a number': changed_header(config={'$tuple': 3}),
    'slice of five': changed_header(config={'$slice': [1, 2, 3, 4, 5]}),
}


@pytest.mark.parametrize('damage', CRAFTED.values(), ids=CRAFTED.keys())
def test_content_that_does_not_fit(saved, damage):
    damage(saved)
    assert 'does not fit the format' in refusal(saved)


def test_is_artifact(saved, tmp_path):
    renamed = saved.rename(tmp_path / 'file.bin')
    other = tmp_path / 'other.pth'
    other.write_bytes(b'PK')
    assert is_artifact(renamed)
    assert is_artifact(tmp_path / 'missing.clipq')
    assert not is_artifact(other)
    assert not is_artifact(tmp_path / 'missing.pth')
    assert not is_artifact(tmp_path)


@pytest.mark.parametrize('step', ['replace', 'fsync', 'fchmod'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
@pytest.mark.parametrize('existing', [True, False])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, step, error, existing):
    target = tmp_path / 'a.clipq'
    if existing:
        target.write_bytes(b'older')

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(error):
        save_artifact(target, small_artifact())
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (['a.clipq'] if existing else [])
    assert not existing or target.read_bytes() == b'older'


def test_write_makes_folders_and_keeps_the_umask(tmp_path):
    target = tmp_path / 'a' / 'b' / 'file.bin'
    before = os.umask(0o027)
    try:
        write_atomically(target, b'one')
        write_atomically(target, b'two')
    finally:
        os.umask(before)
    assert target.read_bytes() == b'two'
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ['file.bin']


def test_artifact_errors_are_printed_as_one_sentence():
    assert issubclass(ArtifactError, ClipQError)
