"""The direction of imports, and what running an int8 file leaves unread."""

import subprocess
import sys
from pathlib import Path

import pytest
import rooms
import torch

from mmclipq.apis import build_detector, quantize, save_int8

ROOT = Path(__file__).parents[1]
SOURCES = rooms.read_checkout(ROOT)


def wrong_way(sources) -> list[str]:
    """Imports of a room in the same layer or in a later one."""
    layer = {room: number for number, row in enumerate(rooms.LAYERS) for room in row}
    return [
        str(found)
        for found in rooms.imports(sources)
        for source, target in [(rooms.room_of(found.source), rooms.room_of(found.target))]
        if source != target and layer[target] >= layer[source]
    ]


def test_every_room_has_one_layer():
    layers = [room for row in rooms.LAYERS for room in row]
    found = {rooms.room_of(rooms.module_name(file)) for file in SOURCES}
    assert sorted(layers) == sorted(found)


def test_imports_go_downwards():
    assert not wrong_way(SOURCES)


@pytest.mark.parametrize(
    ('file', 'line', 'target'),
    [
        ('mmclipq/graph/ir.py', 'from ..ops.layer import Layer', 'ops.layer'),
        ('mmclipq/graph/ir.py', 'from .. import backends', 'backends'),
        ('mmclipq/graph/__init__.py', 'from ..lowering import plan', 'lowering.plan'),
        ('mmclipq/graph/ir.py', 'import mmclipq.detector', 'detector'),
        ('mmclipq/fixed_point.py', 'from . import prepare', 'prepare'),
        ('mmclipq/ops/cuda/tiles.py', 'from ...exporters.qdq import x', 'exporters.qdq'),
        ('mmclipq/exporters/qdq.py', 'def f():\n    from mmclipq import apis', 'apis'),
        ('mmclipq/calibration/observer.py', 'if True:\n    from ..graph import ir', 'graph.ir'),
    ],
)
def test_an_import_upwards_or_sideways_is_named_with_file_and_line(file, line, target):
    planted = {**SOURCES, file: f'{SOURCES[file]}\n{line}\n'}
    number = planted[file].count('\n')
    (found,) = wrong_way(planted)
    source = rooms.module_name(file)
    assert found == f'{file}:{number}: {source} imports mmclipq.{target}'


def test_no_modules_import_each_other_in_a_circle():
    imported = {rooms.module_name(file): set() for file in SOURCES}
    for found in rooms.imports(SOURCES):
        imported[found.source].add(found.target)
    # Those that import nothing that is left go first; a circle stays.
    while free := [name for name, targets in imported.items() if not targets & imported.keys()]:
        for name in free:
            del imported[name]
    assert not imported


def test_the_table_counts_rooms_floors_and_arrows():
    sources = {
        'mmclipq/__init__.py': 'from .version import x\n',
        'mmclipq/version.py': '',
        'mmclipq/ops/__init__.py': '',
        'mmclipq/ops/a.py': 'from .. import version\nfrom . import b\n',
        'mmclipq/ops/b.py': 'import mmclipq.version\n',
        'tools/t.py': 'from mmclipq.ops.a import y\n',
    }
    lines = rooms.table(sources).splitlines()
    assert lines[2:6] == [
        '| 2 | tools | 1 | 1 | ops |',
        '| 1 | mmclipq | 1 | 1 | version |',
        '| 1 | ops | 3 | 3 | version |',
        '| 0 | version | 1 | 0 |  |',
    ]
    assert lines[-1] == '4 rooms on 3 floors, 3 arrows.'


def test_rooms_in_a_circle_have_no_floor():
    assert rooms.floors({'a': {'b'}, 'b': {'a'}, 'c': set()}) == {'a': 3, 'b': 3, 'c': 0}


TRAINING = 'calibration', 'layers', 'prepare', 'models', 'lowering'
PREDICT = """
import sys
import torch
import mmclipq
from mmclipq.detector import plain_samples

detector = mmclipq.load_int8(sys.argv[1], backend='reference')
images = torch.zeros(1, 3, 64, 96)
detector.predict(images, plain_samples(images))
print(*sorted(name for name in sys.modules if name.startswith('mmclipq.')))
"""


@pytest.mark.parametrize('svd', [False, True], ids=['stock', 'svd'])
def test_running_a_file_imports_nothing_of_the_training_half(load_config, tmp_path, svd):
    """Unless its own config names a class of that half."""
    cfg = load_config('quickstart/faster_rcnn_mobilenetv2_digits.py')
    if svd:
        cfg.model.roi_head.bbox_head.update(type='mmclipq.SVDBBoxHead', svd_rank=16)
    # A name with a scope is looked for in the registries before anything is built.
    cfg.model.data_preprocessor.type = 'mmdet.DetDataPreprocessor'
    model = build_detector(cfg.model, random=True).eval()
    quantized = quantize(model, [torch.rand(1, 3, 64, 96)])
    save_int8(tmp_path / 'a.clipq', model, quantized, cfg, {})
    command = [sys.executable, '-W', 'ignore', '-c', PREDICT, str(tmp_path / 'a.clipq')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # onedl-mmdetection prints what it lacks while it is imported.
    read = {name.split('.')[1] for name in done.stdout.splitlines()[-1].split()}
    assert {'graph', 'ops', 'backends', 'detector', 'apis'} <= read
    allowed = {'models', 'layers', 'calibration'} if svd else set()
    assert read & set(TRAINING) == allowed
