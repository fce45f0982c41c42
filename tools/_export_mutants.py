"""Damaged exported files: bytes alone, and models that are whole but say something else."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from mmclipq.apis.export_file import ExportOptions, export_file
from mmclipq.exporters.openvino_ir import weights_file
from mmclipq.exporters.seal import sealed

_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 127, 255, 4096, 2**31 - 1, -(2**31), 2**40)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e30,
    '',
    'x',
    [],
    {},
    [[]],
    {'type': 'os.system'},
    ['a', 1],
    2**80,
)
_METADATA = ('data_preprocessor', 'pipeline', 'classes', 'clip_border', 'part')


def make_exports(folder: Path, seeds: list[Path]) -> list[Path]:
    """End-to-end models of ``.clipq`` files for both runtimes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for seed in seeds:
        for kind, suffix in (('onnx', '.onnx'), ('openvino', '.xml')):
            made.append(folder / f'{seed.stem}{suffix}')
            export_file(seed, made[-1], ExportOptions(format=kind, end2end=True))
    return made


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, left out, put in, or the end cut off."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(content))
        way = rng.randrange(5)
        if way == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            content[place : place + rng.randint(1, 64)] = b''
        elif way == 2:
            content[place:place] = rng.randbytes(rng.randint(1, 16))
        elif way == 3:
            content[place : place + rng.randint(1, 8)] = rng.randbytes(rng.randint(1, 8))
        else:
            del content[rng.randint(0, place) :]
        if not content:
            return b''
    return bytes(content)


def _fact(key: str, rng: random.Random) -> str:
    value = rng.choice(_VALUES)
    return rng.choice((json.dumps(value), str(value), f'[{json.dumps(value)}]', key))


def _changed_onnx(data: bytes, rng: random.Random) -> bytes:
    """Another model in a file that is one."""
    import onnx

    model: Any = onnx.load_from_string(data)
    graph = model.graph
    way = rng.randrange(7)
    if way == 0:
        entry = rng.choice([p for p in model.metadata_props if p.key in _METADATA])
        entry.value = _fact(entry.key, rng)
    elif way == 1:
        node = rng.choice([n for n in graph.node if n.attribute])
        attribute = rng.choice(list(node.attribute))
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_NUMBERS)
        else:
            attribute.i = rng.choice(_NUMBERS)
    elif way == 2:
        del graph.node[rng.randrange(len(graph.node))]
    elif way == 3:
        node = rng.choice(graph.node)
        node.op_type = rng.choice([n.op_type for n in graph.node])
    elif way == 4:
        constant = rng.choice(graph.initializer)
        constant.dims[:] = [rng.choice(_NUMBERS) for _ in range(rng.randint(0, 4))]
    elif way == 5:
        constant = rng.choice(graph.initializer)
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key='location', value=rng.choice(('/etc/passwd', 'x.bin')))
    else:
        where = rng.choice((graph.input, graph.output))
        if rng.random() < 0.5:
            rng.choice(where).name = rng.choice(('image', 'boxes', 'x'))
        else:
            rng.choice(where).type.tensor_type.elem_type = rng.randint(1, 16)
    return model.SerializeToString()


def _changed_xml(data: bytes, rng: random.Random) -> bytes:
    """Other values of some of its attributes."""
    found = list(re.finditer(rb'<(\w+)[^>]*?\b(\w+)="([^"]*)"', data))
    if rng.random() < 0.3:
        found = [m for m in found if m[1].decode() in _METADATA] or found
    match = rng.choice(found)
    old = match[3].decode()
    if re.fullmatch(r'-?[\d, ]+', old):
        new = ','.join(str(rng.choice(_NUMBERS)) for _ in old.split(','))
    elif match[1].decode() in _METADATA:
        new = _fact(old, rng).replace('"', '&quot;').replace('<', '')
    else:
        new = rng.choice([m[3].decode() for m in found])
    return data[: match.start(3)] + new.encode() + data[match.end(3) :]


def write_mutant(source: Path, rng: random.Random, folder: Path) -> Path:
    """Write a damaged copy of an exported file, most of them with right checksums."""
    suffix, data = source.suffix, source.read_bytes()
    path = folder / f'mutant{suffix}'
    weights = weights_file(source).read_bytes() if suffix == '.xml' else b''
    way = rng.random()
    if suffix == '.xml' and way < 0.25:
        weights = _damaged(weights, rng)
        if rng.random() < 0.7:
            checksum = hashlib.sha256(weights).hexdigest().encode()
            data = re.sub(rb'(<weights value=")[0-9a-f]+', rb'\g<1>' + checksum, data)
            data = sealed(data, suffix)
    elif way < 0.4:
        data = _damaged(data, rng)
    elif way < 0.6:
        data = sealed(_damaged(data, rng), suffix)
    else:
        changed = _changed_onnx if suffix == '.onnx' else _changed_xml
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = changed(data, rng)
        data = sealed(data, suffix)
    path.write_bytes(data)
    if suffix == '.xml':
        path.with_suffix('.bin').write_bytes(weights)
    return path
