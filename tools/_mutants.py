"""Changes to ``.clipq`` files that keep the checksum right: what a stranger might write."""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

import zstandard

from mmclipq.graph.container import DENSE_VERSION
from mmclipq.graph.islands import FUNCTIONS, METHODS

_PREFIX = 52
_WORDS = (
    '', 'x', 'image', 'features', 'os.system', 'antigravity', 'builtins.exec', 'torch.load', 'eval',
    'input', 'mmengine.load', 'mmdet.apis.init_detector', 'BertModel', 'Albu', '/etc/passwd',
    'http://127.0.0.1:9/a.pkl', '../a.py', 'nms', 'exec', 'conv', 'int8', 'float64', 'relu',
    'exp', 'a' * 5000, '\0', '模型', '__class__', 'torch.one_hot', 'operator.pow',
    'repeat_interleave', 'RegNet', 'FCOSHead', 'FPN', 'RPNHead', 'Linear', 'Runner',
    'DetDataPreprocessor', 'cuda', 'meta',
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 255, 256, 2**15, 2**24, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, 0.5, -0.0,
    1e-40, 1e30, 1e308, True, False,
)  # fmt: skip
_KEYS = (
    'type', '_scope_', '_delete_', '_base_', 'custom_imports', 'init_cfg', 'pretrained',
    'teacher_config', 'teacher_ckpt', 'x', 'in_channels', 'num_classes', 'norm_cfg', 'test_cfg',
)  # fmt: skip
_NAMES = ('x', 'other', 'rois', 'like', 'residual', 'weight', 'bias', 'multiplier')


class Content:
    """A file taken apart: version, header, tensors' index and their bytes, and the dense stream."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.version = struct.unpack('<I', data[8:12])[0]
        body = data[_PREFIX:]
        (length,) = struct.unpack('<Q', body[:8])
        text, rest = body[8 : 8 + length], body[8 + length :]
        self.stream: bytearray | None = None
        if self.version == DENSE_VERSION:
            (size,) = struct.unpack('<Q', rest[:8])
            self.stream = bytearray(rest[8 + size :])
            text, rest = zstandard.decompress(text), rest[8 : 8 + size]
        self.header: Any = json.loads(text)
        content = zstandard.decompress(rest)
        (length,) = struct.unpack('<Q', content[:8])
        self.index: Any = json.loads(content[8 : 8 + length])
        self.bytes = bytearray(content[8 + length :])

    def repack(self) -> None:
        """Let the tensors lie one after the other, as their reader wants them."""
        whole = bytearray()
        for name, entry in self.index.items():
            if name == '__metadata__':
                continue
            start, end = entry['data_offsets']
            part = self.bytes[start:end]
            entry['data_offsets'] = [len(whole), len(whole) + len(part)]
            whole += part
        self.bytes = whole

    def body(self, rng: random.Random) -> bytes:
        """What stands behind the checksum, now and then damaged where nothing else damages it."""
        text = json.dumps(self.header).encode()
        index = json.dumps(self.index).encode()
        length = len(index)
        if rng.random() < 0.01:
            length = rng.choice((0, length + 8, 2**31, 2**63))
        content = struct.pack('<Q', length) + index + bytes(self.bytes)
        blob = zstandard.compress(content, 1)
        if rng.random() < 0.01:
            blob = zstandard.ZstdCompressor(write_content_size=False).compress(content)
        if rng.random() < 0.01:  # a frame that states more than it holds
            blob = (
                b'\x28\xb5\x2f\xfd\xe0' + struct.pack('<Q', rng.choice((2**20, 2**40))) + blob[9:]
            )
        if self.stream is not None:
            text = zstandard.compress(text, 1)
            said = len(blob)
            if rng.random() < 0.01:
                said = rng.choice((0, said // 2, said + len(self.stream) + 1, 2**62))
            blob = struct.pack('<Q', said) + blob + self.stream
        size = len(text)
        if rng.random() < 0.01:
            size = rng.choice((0, size // 2, size + len(blob) + 1, 2**62))
        body = bytearray(struct.pack('<Q', size) + text + blob)
        if rng.random() < 0.02:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        return bytes(body)


def _places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container in ``tree`` with each of its keys."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        found.append((tree, key))
        if isinstance(value, (dict, list)):
            _places(value, found)
    return found


def _value(rng: random.Random, places: list[tuple[Any, Any]], old: Any) -> Any:
    """Something to stand where ``old`` was."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        return rng.choice(_WORDS)
    if kind == 2:
        return rng.choice((None, [], {}, [[]], [1, 2, 3], {'type': 'os.system'}, [None] * 3))
    if kind == 3:
        word = rng.choice(_WORDS)
        return rng.choice(({'$ref': word}, {'$tuple': [1, 2]}, {'$dtype': word}, {'$float': 'nan'},
                           {'$slice': [0, None, 0]}, {'$ellipsis': True}, {'$ref': 5}))  # fmt: skip
    if kind == 4:
        owner, key = rng.choice(places)
        return copy.deepcopy(owner[key])
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, (int, float)):
        return rng.choice((old + 1, old - 1, old * 2, old * 1000, -old, old / 2, old // 2))
    if isinstance(old, str):
        names = [o[k] for o, k in rng.choices(places, k=40) if isinstance(o[k], str)]
        return rng.choice([*names, old + 'x', old[:-1]])
    if isinstance(old, list) and old:
        return rng.choice((old[1:], old + old[:1], old[::-1], old * 2))
    return copy.deepcopy(old)


def _change_header(content: Content, rng: random.Random) -> None:
    # A kind of place first, so that the few numbers of the layout come as often as many nodes.
    parts = ['graphs', 'graphs', 'graphs', 'config', 'config', 'meta', '']
    parts += ['codes', 'planes'] if content.stream is not None else []
    part = rng.choice(parts)
    tree = content.header.get(part, content.header)
    places = _places(tree, []) if isinstance(tree, (dict, list)) else []
    if not places:
        content.header[part] = rng.choice(_NUMBERS)
        return
    owner, key = rng.choice(places)
    action = rng.random()
    if action < 0.1:
        del owner[key]
    elif action < 0.2 and isinstance(owner, dict):
        owner[rng.choice(_KEYS)] = _value(rng, places, owner[key])
    else:
        owner[key] = _value(rng, places, owner[key])


def _change_nodes(content: Content, rng: random.Random) -> None:
    try:
        nodes = rng.choice(content.header['graphs'])['nodes']
        # A kind first, because most nodes are convolutions.
        kind = rng.choice(sorted({node['node'] for node in nodes}))
        first = rng.choice([i for i, node in enumerate(nodes) if node['node'] == kind])
        second = rng.randrange(len(nodes))
        node, other = nodes[first], nodes[second]
        action = rng.randrange(7)
        if kind == 'FloatCall' and action < 5:
            _change_call(node, rng)
        elif action == 0:
            del nodes[first]
        elif action == 1:
            nodes[first], nodes[second] = other, node
        elif action == 2:
            nodes.insert(second, {**copy.deepcopy(node), 'name': f'{node["name"]}.{second}'})
        elif action == 3:
            node['type'] = copy.deepcopy(other['type'])
        elif action == 4:
            node['node'] = other['node']
        elif action == 5:
            key = rng.choice([key for key in node if key in _NAMES])
            node[key] = other.get(key, other['name'])
        else:
            numbers = [k for k, v in node.items() if isinstance(v, (int, float, dict))]
            key = rng.choice(numbers)
            pair = [rng.choice(_NUMBERS), rng.choice(_NUMBERS)]
            node[key] = rng.choice((rng.choice(_NUMBERS), {'$tuple': pair}))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return  # an earlier change left nothing to change


def _change_call(node: dict[str, Any], rng: random.Random) -> None:
    """Let a float step call something else, or with other arguments."""
    args = node['args']['$tuple']
    if rng.random() < 0.5:
        node['kind'] = rng.choice(('function', 'function', 'method', 'module', 'parameter'))
        names = {'function': sorted(FUNCTIONS), 'method': sorted(METHODS)}.get(node['kind'])
        node['target'] = rng.choice(names or ('neck', 'backbone', 'backbone.conv1.weight', ''))
    values = (
        *_NUMBERS, None, 'sum', {'$tuple': [1, 2**20]}, [4096, 4096], args[0], {'$dtype': 'int64'},
        {'$slice': [None, None, 2]}, {'$ref': 'image'}, 'a,b->ab', {'$ellipsis': True},
    )  # fmt: skip
    for _ in range(rng.randint(0, 3)):
        place = rng.randint(1, max(1, len(args)))
        args[place : place + rng.randint(0, 1)] = [copy.deepcopy(rng.choice(values))]


def _change_tensors(content: Content, rng: random.Random) -> None:
    try:
        names = [name for name in content.index if name != '__metadata__']
        name = rng.choice(names)
        entry = content.index[name]
        start, end = entry['data_offsets']
        action = rng.randrange(8)
        if action == 0:
            del content.index[name]
        elif action == 1:
            entry['dtype'] = rng.choice(('I8', 'U8', 'F32', 'F64', 'I32', 'BOOL', 'F8_E4M3', 'C64'))
        elif action == 2:
            entry['shape'] = rng.choice(
                (entry['shape'][::-1], [*entry['shape'], 1], [1, *entry['shape']], [],
                 [0, *entry['shape']], [2**62, 4], [-1], entry['shape'][1:])
            )  # fmt: skip
        elif action == 3:
            entry['data_offsets'] = rng.choice(([start, end + 4], [end, start], [0, 2**63]))
        elif action == 4:
            content.index[f'{name}.more'] = dict(entry)
        elif action == 5:
            content.index[rng.choice(names)] = dict(entry)
        else:
            value = rng.choice((0, 127, 128, 255))
            pattern = rng.choice(
                (bytes([value] * 4), b'\0\0\xc0\x7f', b'\0\0\x80\xff', b'\0\0\0\x7f')
            )
            # An earlier change may have made the place huge.
            size = min(rng.choice((end - start, 4)), len(content.bytes))
            content.bytes[start : start + size] = (pattern * (size // 4 + 1))[:size]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return


def _change_stream(content: Content, rng: random.Random) -> None:
    """Damage entropy coded codes; now and then those of a whole tensor that nobody has coded."""
    stream = content.stream
    if not stream:
        return
    action = rng.randrange(5)
    if action == 0:
        stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
    elif action == 1:
        del stream[rng.randrange(len(stream)) :]
    elif action == 2:
        stream += rng.randbytes(rng.choice((1, 4, 4096)))
    elif action == 3:
        start = rng.randrange(len(stream))
        stream[start : start + 4] = rng.choice((bytes(4), b'\xff' * 4, b''))
    else:
        shapes = content.header.get('codes')
        if isinstance(shapes, dict):
            shapes[f'0.{len(shapes)}'] = rng.choice(([1], [2**20], [2**39, 2**39], [4, 0], [2**31]))


def mutant(content: Content, rng: random.Random) -> tuple[bytes, int]:
    """Body and version of a file that differs from ``content`` in one to four places."""
    changed = copy.copy(content)
    changed.header = copy.deepcopy(content.header)
    changed.index, changed.bytes = copy.deepcopy(content.index), bytearray(content.bytes)
    changes = [_change_header, _change_nodes, _change_nodes, _change_tensors]
    if content.stream is not None:
        changed.stream = bytearray(content.stream)
        changes.append(_change_stream)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(changes)(changed, rng)
    if rng.random() < 0.9:
        changed.repack()
    if not isinstance(changed.header, dict):
        changed.header = content.header
    version = content.version if rng.random() < 0.98 else rng.choice((1, 2, 3, 4))
    return changed.body(rng), version
