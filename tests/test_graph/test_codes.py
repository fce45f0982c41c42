"""Codes decoded are the codes encoded, and damage of the dense form is one sentence."""

import json
import struct
import sys

import numpy as np
import pytest
import torch
import zstandard
from _seeds import write_signed

from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.graph.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from mmclipq.graph.limits import LimitError, Limits

PREFIX = 52

pytest.importorskip('constriction', reason='the dense form needs constriction')
from mmclipq.graph.codes import decode_codes, encode_codes, row_classes  # noqa: E402


def drawn(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    values = {
        'normal': lambda: rng.normal(0, 12, shape),
        'peaked': lambda: rng.laplace(0, 0.3, shape),
        'uniform': lambda: rng.integers(-128, 128, shape),
        'two far': lambda: rng.choice([-128, 127], shape),
        'mixed rows': lambda: (
            rng.normal(0, 1, shape)
            * 2.0 ** rng.integers(-4, 7, (shape[0], *[1] * (len(shape) - 1)))
        ),
    }[kind]()
    return torch.from_numpy(np.rint(values).clip(-128, 127).astype(np.int8))


def outlier(value, shape=(64, 300)):
    codes = torch.zeros(shape, dtype=torch.int8)
    codes[-1, -1] = value
    return codes


TENSORS = {
    'none': {},
    'one': {'a': torch.tensor([[5]], dtype=torch.int8)},
    'one axis': {'a': torch.arange(-128, 128).to(torch.int8)},
    'zeros': {'a': torch.zeros(7, 20000, dtype=torch.int8)},
    'lowest': {'a': torch.full((3, 5000), -128, dtype=torch.int8)},
    'highest': {'a': torch.full((3, 5000), 127, dtype=torch.int8)},
    'all different': {'a': torch.arange(-128, 128).to(torch.int8)[None].repeat(9, 5)},
    'a low outlier': {'a': outlier(-128)},
    'a high outlier': {'a': outlier(127)},
    'around a block': {f'{n}': drawn('normal', (1, n)) for n in (127, 128, 129, 383, 384, 385)},
    'many halvings': {'a': drawn('peaked', (4, 60000))},
    **{
        kind: {'z': drawn(kind, (40, 3, 3, 3)), 'b': drawn(kind, (5, 900), 1)}
        for kind in ('normal', 'peaked', 'uniform', 'two far', 'mixed rows')
    },
}


@pytest.mark.parametrize('name', TENSORS)
def test_codes_decoded_are_the_codes_encoded(name):
    tensors = TENSORS[name]
    classes, stream = encode_codes(tensors)
    # The order of names in a table is no part of the format.
    shapes = {key: list(tensors[key].shape) for key in reversed(tensors)}
    found = decode_codes(shapes, classes, memoryview(stream))
    assert found.keys() == tensors.keys()
    for key, codes in tensors.items():
        assert found[key].dtype == torch.int8
        assert torch.equal(found[key], codes)


@pytest.mark.parametrize(('kind', 'over'), [('normal', 1.02), ('peaked', 1.03), ('uniform', 1.01)])
def test_a_stream_is_about_as_short_as_the_entropy(kind, over):
    codes = drawn(kind, (100, 2000))
    _, counts = codes.unique(return_counts=True)
    shares = counts / counts.sum()
    bits = -float((shares * shares.log2()).sum()) * codes.numel()
    _, stream = encode_codes({'a': codes})
    assert len(stream) * 8 < bits * over


def test_rows_of_other_size_win_by_their_classes():
    codes = drawn('mixed rows', (300, 500))
    _, stream = encode_codes({'a': codes})
    shuffled = codes.flatten()[torch.randperm(codes.numel())].view_as(codes)
    assert len(stream) < 0.9 * len(encode_codes({'a': shuffled})[1])


def test_classes_are_quarter_octaves():
    rows = np.array([[0, 0], [1, -1], [2, -2], [-128, -128], [0, 1]], dtype=np.int8)
    assert row_classes(rows).tolist() == [0, 16, 20, 44, 12]


GOLDEN = (768, 'e874572d4104dfe4fe822f4c')  # bytes, and how they begin


def test_the_stream_is_that_of_every_version():
    """A file that was written once stays readable: what another stream means, another version."""
    codes = (torch.arange(1200) * 7919 % 31 - 15).to(torch.int8).view(6, 200)
    classes, stream = encode_codes({'a': codes})
    assert classes.tolist() == [28, 28, 28, 28, 28, 28]
    assert (len(stream), stream[:12].hex()) == GOLDEN


@pytest.fixture
def path(tmp_path):
    nodes = (ir.Input('image', ir.FLOAT), ir.Quantize('x', ir.TensorType(0), 'image'))
    constants = {
        'w': drawn('normal', (4, 30)),
        'e': torch.arange(4, dtype=torch.int32),
        'empty': torch.zeros(0, 3, dtype=torch.int8),
        'long': torch.arange(3),
    }
    graph = ir.Int8Graph(nodes, (ir.Ref('x'),), constants)
    parameters = {'p': torch.tensor([1.5, -0.0, float('inf')]), 's': torch.tensor(2.5)}
    artifact = Artifact((graph,), parameters, {'a': (1, 2)}, {}, {'mmclipq': '0'})
    save_artifact(tmp_path / 'a.clipq', artifact, dense=True)
    return tmp_path / 'a.clipq'


def test_a_dense_file_holds_what_the_other_holds(path, tmp_path):
    dense = load_artifact(path)
    save_artifact(tmp_path / 'b.clipq', dense)
    fast = load_artifact(tmp_path / 'b.clipq')
    assert path.read_bytes()[8] == 4
    assert (tmp_path / 'b.clipq').read_bytes()[8] == 3
    assert (dense.config, dense.versions) == (fast.config, fast.versions)
    for mine, other in (
        (dense.graphs[0].constants, fast.graphs[0].constants),
        (dense.parameters, fast.parameters),
    ):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            assert value.dtype == other[key].dtype
            assert torch.equal(value, other[key])
    assert dense.parameters['p'].signbit().tolist() == [False, True, False]


def test_every_byte_altered_once_is_refused_by_checksum(path):
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :])
        with pytest.raises(ArtifactError) as caught:
            load_artifact(path)
        assert '\n' not in str(caught.value)


def outcome(path):
    """The sentence with which a file is refused, or None."""
    try:
        load_artifact(path)
    except ClipQError as error:
        return str(error)
    return None


def test_every_byte_altered_once_below_the_right_checksum_ends(path):
    """What is signed anew is other codes or one sentence, nothing else."""
    body = path.read_bytes()[PREFIX:]
    refused = 0
    for index in range(len(body)):
        write_signed(path, body[:index] + bytes([body[index] ^ 0x55]) + body[index + 1 :], 4)
        message = outcome(path)
        refused += message is not None
        assert '\n' not in (message or '')
    assert refused > 0.7 * len(body)


def rewritten(path, change):
    """The file with header, frame and stream changed, and a right checksum."""
    body = path.read_bytes()[PREFIX:]
    (length,) = struct.unpack('<Q', body[:8])
    header, rest = json.loads(zstandard.decompress(body[8 : 8 + length])), body[8 + length :]
    (size,) = struct.unpack('<Q', rest[:8])
    parts = {'frame': rest[8 : 8 + size], 'stream': rest[8 + size :], 'size': size}
    change(header, parts)
    text = parts.get('header', zstandard.compress(json.dumps(header).encode()))
    rest = struct.pack('<Q', parts['size']) + parts['frame'] + parts['stream']
    write_signed(path, struct.pack('<Q', len(text)) + text + rest, 4)


W, E = 'constant.0.w', 'constant.0.e'


def codes(**values):
    return lambda header, parts: header['codes'].update(values)


def stream(change):
    return lambda header, parts: parts.update(stream=change(parts['stream']))


DAMAGE = {
    'more rows': codes(**{W: [5, 30]}),
    'fewer rows': codes(**{W: [3, 30]}),
    'wider rows': codes(**{W: [4, 31]}),
    'narrower rows': codes(**{W: [4, 29]}),
    'much wider rows': codes(**{W: [4, 10**6]}),
    'no rows': codes(**{W: [0, 30]}),
    'negative rows': codes(**{W: [-4, 30]}),
    'a number as shape': codes(**{W: 4}),
    'rows of text': codes(**{W: ['4', 30]}),
    'a tensor twice': codes(**{'constant.0.long': [4, 30]}),
    'too many axes': codes(**{W: [4, 30, *[1] * 8]}),
    'no table of codes': lambda header, parts: header.pop('codes'),
    'a list of codes': lambda header, parts: header.update(codes=[W]),
    'codes that nobody names': lambda header, parts: header.update(codes={}),
    'planes of another type': lambda header, parts: header['planes'].update({E: ['int64', [2]]}),
    'planes of another size': lambda header, parts: header['planes'].update({E: ['int32', [5]]}),
    'planes of nothing': lambda header, parts: header['planes'].update(no=['int32', [4]]),
    'planes of a number': lambda header, parts: header['planes'].update({E: 3}),
    'no stream': stream(lambda data: b''),
    'half of a stream': stream(lambda data: data[: len(data) // 8 * 4]),
    'a stream with more': stream(lambda data: data + b'\1\0\0\0'),
    'a stream with zeros': stream(lambda data: data + bytes(4)),
    'a byte more': stream(lambda data: data + b'\0'),
    'a frame beyond the end': lambda header, parts: parts.update(size=2**63),
    'a frame of nothing': lambda header, parts: parts.update(size=0),
    'a header without its size': lambda header, parts: parts.update(
        header=zstandard.ZstdCompressor(write_content_size=False).compress(b'{}')
    ),
    'another version inside': lambda header, parts: header.update(format=3),
}


@pytest.mark.parametrize('change', DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_in_one_sentence(path, change, assert_damage_is_named):
    rewritten(path, change)
    assert_damage_is_named(path)


def test_what_is_not_changed_loads(path):
    rewritten(path, lambda header, parts: None)
    assert len(load_artifact(path).graphs) == 1


@pytest.mark.parametrize('side', [2**20, 2**39])
def test_codes_that_a_file_states_take_no_memory_before_they_are_looked_at(path, side):
    rewritten(path, codes(**{W: [4, side], 'x': [side, 1024]}))
    with pytest.raises(LimitError, match=r'found codes of .*, wanted at most 5\.369e\+08'):
        load_artifact(path)


@pytest.mark.parametrize(('name', 'most'), [('codes', 119), ('content', 119), ('header', 200)])
def test_limits(path, name, most):
    with pytest.raises(LimitError, match=rf'found {name} of .*, wanted at most'):
        load_artifact(path, Limits(**{name: most}))


def test_codes_count_as_content(path):
    frame = 700  # more than the frame alone has, less than that and 4000 codes
    rewritten(path, codes(**{W: [4, 1000]}))
    with pytest.raises(LimitError, match='found content of'):
        load_artifact(path, Limits(content=frame + 3000))


def test_a_missing_package_is_said_as_such(path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'constriction', None)
    with pytest.raises(ClipQError, match='found no package constriction, .* pip install'):
        load_artifact(path)
