"""A config inside a file names registered types and nothing that lies outside of it."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mmengine.registry import MODELS

from mmclipq.apis.building import counted
from mmclipq.apis.detectors import build_detector
from mmclipq.apis.file_config import check_config, check_pipeline, image_size
from mmclipq.apis.guarded import guarded
from mmclipq.errors import ClipQError
from mmclipq.graph.container import ArtifactError
from mmclipq.graph.limits import LimitError, Limits

GOOD = {
    'type': 'FasterRCNN',
    'backbone': {'type': 'ResNet', 'depth': 50, 'pretrained': 'torchvision://resnet50'},
    'neck': {'type': 'mmdet.FPN', 'init_cfg': {'type': 'Pretrained', 'checkpoint': '/a.pth'}},
    'roi_head': {
        'bbox_roi_extractor': {'type': 'SingleRoIExtractor', 'roi_layer': {'type': 'RoIAlign'}},
        'bbox_head': {'type': 'mmclipq.SVDBBoxHead', 'regress': [(-1, 64), (float('inf'), None)]},
    },
    'test_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'scope': {'_scope_': 'mmdet'}},
    'arch': 'regnetx_3.2gf',
}


def test_what_configs_say_passes():
    check_config(GOOD, 'a.clipq', 'model')


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('backbone', {'type': 'antigravity'}, "the type 'antigravity'"),
        ('backbone', {'type': 'os'}, "the type 'os'"),
        ('backbone', {'type': 'nms'}, "the type 'nms'"),
        ('nms', {'type': 'exec'}, "the type 'exec'"),
        ('nms', {'type': 'input'}, "the type 'input'"),
        ('roi_layer', {'type': 'nms'}, "the type 'nms'"),
        ('backbone', {'type': 3}, "the type '3'"),
        ('backbone', {'type': {'type': 'nms'}}, 'wanted a registered name'),
        ('backbone', {'type': None}, "the type 'None'"),
        ('language_model', {'type': 'BertModel', 'name': 'x'}, 'loads a language model'),
        ('backbone', {'type': 'ResNet', '_scope_': 'antigravity'}, "the scope 'antigravity'"),
        ('teacher_ckpt', 'x', "'teacher_ckpt'"),
        ('teacher_config', 'configs/x.py', "teacher_config='configs/x.py'"),
        ('custom_imports', {'imports': ['os']}, "'custom_imports'"),
        ('_base_', 'x', "'_base_'"),
        ('_delete_', True, "'_delete_'"),
        ('weights', 'http://x.org/a', "weights='http://x.org/a'"),
        ('weights', 'model.PKL', "weights='model.PKL'"),
        ('weights', 'C:\\a', 'may name a file'),
        ('depth', 10**9, 'numbers up to'),
        ('sampling_ratio', 65, 'numbers up to 64'),
        ('output_size', [7, 2**12], 'numbers up to 1024'),
        ('depth', float('nan'), 'numbers up to'),
        ('depth', 1e300, 'numbers up to'),
        ('depth', print, 'plain data'),
        ('stages', [1] * 5000, "5000 items of 'stages'"),
        (3, 1, 'short texts as keys'),
        ('name', 'x' * 2000, 'may name a file'),
    ],
)
@pytest.mark.parametrize('place', ['top', 'list'])
def test_what_reaches_outside_is_refused(key, value, message, place):
    entry = {key: value} if place == 'top' else {'parts': [({key: value},)]}
    with pytest.raises(ArtifactError, match=r'a\.clipq: found ') as caught:
        check_config({**GOOD, **entry}, 'a.clipq', 'model')
    assert message in str(caught.value)


def test_deep_and_wide_configs():
    deep = []
    for _ in range(40):
        deep = [deep]
    wide = [[[0] * 100] * 100] * 100
    for config in (deep, wide):
        with pytest.raises(ArtifactError, match='more than 32 levels or'):
            check_config({'a': config}, 'a.clipq')


def test_names_alone_import_no_module(tmp_path, monkeypatch):
    """MMEngine itself imports what no registry knows; the check does not let it come to that."""
    (tmp_path / 'harmful.py').write_text('raise SystemExit("imported")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend('')
    with pytest.raises(SystemExit, match='imported'):
        MODELS.build({'type': 'harmful'})
    with pytest.raises(ArtifactError, match="the type 'harmful'"):
        check_config({'type': 'harmful'}, 'a.clipq')


def test_pipelines():
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': (1333, 800)}]
    check_pipeline(steps, 'a.clipq', Limits())
    assert image_size(steps) == (800, 1333)
    assert image_size(steps[:1]) == (800, 1333)
    for scale in ((10**5, 10**5), 10**5, [(640, 640), (10**5, 10**4)]):
        steps[1]['scale'] = scale
        with pytest.raises(LimitError, match=r'a\.clipq: pipeline: found pixels of 1e\+'):
            check_pipeline(steps, 'a.clipq', Limits())
    with pytest.raises(ArtifactError, match='found a pipeline of str'):
        check_pipeline('x', 'a.clipq', Limits())
    with pytest.raises(ArtifactError, match="the type 'Albu', which"):
        check_pipeline([{'type': 'Albu', 'transforms': []}], 'a.clipq', Limits())


@pytest.mark.parametrize(
    'call',
    [
        lambda: Path(tempfile.gettempdir(), 'x').write_text('x'),
        lambda: Path('~/.bashrc').expanduser().read_text(),
        lambda: os.open(f'{tempfile.gettempdir()}/x', os.O_WRONLY | os.O_CREAT),
        lambda: os.system('true'),
        lambda: subprocess.run(['true']),
        lambda: socket.create_connection(('127.0.0.1', 9)),
        lambda: socket.getaddrinfo('localhost', 9),
    ],
)
def test_inside_the_guard_nothing_outside_is_reached(call):
    with guarded('a.clipq'), pytest.raises(ClipQError, match=r'a\.clipq: found content that makes'):
        call()


def test_the_guard_lets_libraries_be_read_and_ends():
    with guarded('a.clipq'):
        sys.modules.pop('colorsys', None)
        __import__('colorsys')
        with guarded('b.clipq'):
            pass
        with pytest.raises(ClipQError, match=r'a\.clipq'):
            os.system('true')
    assert os.system('true') == 0


def model(**changes):
    return {
        'type': 'FCOS',
        'backbone': {'type': 'ResNet', 'depth': 18, **changes},
        'neck': None,
        'bbox_head': {'type': 'FCOSHead', 'num_classes': 2, 'in_channels': 512, 'strides': [32],
                      'regress_ranges': ((-1, 1e8),)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'limits', 'what'),
    [
        ({'base_channels': 2**20, 'stem_channels': 2**20}, {}, 'model'),
        ({}, {'model': 1e6}, 'model'),
        ({}, {'modules': 20}, 'modules'),
    ],
)
def test_building_stops_before_memory_is_taken(changes, limits, what):
    with (
        pytest.raises(LimitError, match=f'a: found {what} of'),
        counted(Limits(**limits), 'a'),
    ):
        build_detector(model(**changes))
    with counted(Limits(), 'a'):
        build_detector(model())
