"""Sizes that a file states are looked at before anything is unpacked."""

import json
import struct

import pytest
import torch
import zstandard
from _seeds import write_signed

from mmclipq.graph import ir
from mmclipq.graph.artifact import Artifact, load_artifact, save_artifact
from mmclipq.graph.limits import LimitError, Limits

PREFIX = 52


@pytest.fixture
def path(tmp_path):
    nodes = (ir.Input('image', ir.FLOAT), ir.Quantize('x', ir.TensorType(0), 'image'))
    graph = ir.Int8Graph(nodes, (ir.Ref('x'),), {'c': torch.arange(1000, dtype=torch.int32)})
    save_artifact(tmp_path / 'a.clipq', Artifact((graph,), {'p': torch.ones(10)}, {}, {}))
    return tmp_path / 'a.clipq'


def rewritten(path, change):
    """The file with its header, index of tensors and their bytes changed, and a right checksum."""
    body = path.read_bytes()[PREFIX:]
    (length,) = struct.unpack('<Q', body[:8])
    header, content = json.loads(body[8 : 8 + length]), zstandard.decompress(body[8 + length :])
    (size,) = struct.unpack('<Q', content[:8])
    index, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    blob = change(header, index, data)
    if blob is None:
        text = json.dumps(index).encode()
        blob = zstandard.compress(struct.pack('<Q', len(text)) + text + data)
    text = json.dumps(header).encode()
    write_signed(path, struct.pack('<Q', len(text)) + text + blob, 3)


def entry(**values):
    def change(header, index, data):
        index['constant.0.c'].update(values)

    return change


def node(**values):
    def change(header, index, data):
        header['graphs'][0]['nodes'][1].update(values)

    return change


def replaced(key, value):
    def change(header, index, data):
        header[key] = value

    return change


deep = {}
for _ in range(80):
    deep = {'a': deep}

DAMAGE = {
    'a frame without its size': lambda h, i, d: zstandard.ZstdCompressor(
        write_content_size=False
    ).compress(d),
    'two frames': lambda h, i, d: zstandard.compress(d) * 2,
    'more axes': entry(shape=[1] * 9),
    'a negative side': entry(shape=[-1, 1000]),
    'a side of text': entry(shape=['1000']),
    'a side that is true': entry(shape=[True, 1000]),
    'an endless side': entry(shape=[2**62, 4]),
    'another size': entry(shape=[999]),
    'a dtype that torch lacks': entry(dtype='C64'),
    'offsets beyond the end': entry(data_offsets=[0, 2**40]),
    'a reference of a number': replaced('config', {'$ref': 3}),
    'a dtype of a module': replaced('config', {'$dtype': 'onnx'}),
    'a deep config': replaced('config', deep),
    'a config of a list': replaced('config', [1]),
    'meta of a text': replaced('meta', 'x'),
    'graphs of a text': replaced('graphs', 'x'),
    'a node of another kind': node(node='Conv'),
    'a type of seven': node(type=[0, True, 0, 1]),
}


@pytest.mark.parametrize('change', DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_in_one_sentence(path, change, assert_damage_is_named):
    rewritten(path, change)
    assert_damage_is_named(path)


def test_what_is_not_changed_loads(path):
    rewritten(path, lambda header, index, data: None)
    assert len(load_artifact(path).graphs) == 1


@pytest.mark.parametrize(
    ('name', 'most'), [('file', 100), ('header', 100), ('content', 4000), ('nodes', 1)]
)
def test_each_limit_is_kept_and_can_be_raised(path, name, most, monkeypatch):
    with pytest.raises(LimitError, match=rf'a\.clipq: found {name} of .* wanted at most'):
        load_artifact(path, Limits(**{name: most}))
    monkeypatch.setenv('MMCLIPQ_LIMITS', f'{name}={most}')
    with pytest.raises(LimitError):
        load_artifact(path)
    load_artifact(path, Limits())


def test_a_frame_that_states_a_terabyte_takes_none(path):
    def change(header, index, data):
        return b'\x28\xb5\x2f\xfd\xe0' + struct.pack('<Q', 2**40) + bytes(20)

    rewritten(path, change)
    with pytest.raises(LimitError, match=r'found content of 1\.1e\+12, wanted at most 4\.295e\+09'):
        load_artifact(path)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('m', float('nan'), 'from nan to nan, wanted finite'),
        ('m', float('inf'), 'inf, wanted finite'),
        ('b', 2.0**90, 'wanted finite values up to'),
        ('e', 41, 'found exponents 0 to 41, wanted -40 to 40'),
    ],
)
def test_values_of_constants(key, value, message):
    constants = {
        'w': torch.ones(2, 3, 1, 1, dtype=torch.int8),
        'e': torch.zeros(2, dtype=torch.int32),
        'm': torch.ones(2),
        'b': torch.zeros(2),
    }
    constants[key][1] = value
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Conv('y', kind, 'x', 'w', 'e', 'm', 'b'),
    )
    with pytest.raises(ir.GraphError, match=f'y: .*{message}'):
        ir.Int8Graph(nodes, ir.Ref('y'), constants)


def test_sums_that_could_leave_32_bits():
    count, kind = 2**31 // (127 * 128), ir.TensorType(0)
    constants = {
        'w': torch.full((1, count), 127, dtype=torch.int8),
        'e': torch.zeros(1, dtype=torch.int32),
        'm': torch.ones(1),
        'b': torch.zeros(1),
    }
    start = (ir.Input('image', ir.FLOAT), ir.Quantize('x', kind, 'image'))
    node = ir.Linear('y', kind, 'x', 'w', 'e', 'm', 'b')
    assert count * 127 * 128 < 2**31 <= (count + 1) * 127 * 128
    ir.Int8Graph((*start, node), ir.Ref('y'), constants)
    constants['w'] = torch.full((1, count + 1), 127, dtype=torch.int8)
    with pytest.raises(ir.GraphError, match='y: found weights whose sums of products reach 2147'):
        ir.Int8Graph((*start, node), ir.Ref('y'), constants)
