"""What ``load_int8`` refuses: files whose content would run code or does not fit together."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from mmdet.models.detectors import YOLOV3

from mmclipq.apis import load_int8
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.graph.artifact import ArtifactError, load_artifact, save_artifact


def altered(intact, tmp_path, change):
    path, artifact = tmp_path / 'digits.clipq', load_artifact(intact)
    change(artifact)
    save_artifact(path, artifact)
    return path


@pytest.mark.parametrize(
    'kind',
    [
        'os.system',
        'subprocess.Popen',
        'torch.load',
        'mmengine.load',
        'mmengine.fileio.load',
        'mmcv.convert_video',
        'mmdet.apis.init_detector',
        'mmdet.no_such_thing',
        'no type',
        '',
    ],
)
@pytest.mark.parametrize('place', ['model', 'backbone', 'list', 'pipeline'])
def test_types_that_are_import_paths_are_refused(intact, tmp_path, kind, place):
    def change(artifact):
        config = artifact.config
        evil = {'type': kind, 'file': 'x'}
        if place == 'backbone':
            config['model']['backbone'] = evil
        elif place == 'list':
            config['model']['neck'] = {'type': 'YOLOV3Neck', 'parts': [({'a': evil},)]}
        else:
            config[place] = evil if place == 'model' else [evil]

    path = altered(intact, tmp_path, change)
    with pytest.raises(ArtifactError, match=rf"digits\.clipq: found the type '{kind}'"):
        load_int8(path)


@pytest.mark.parametrize('prefix', ['mmdet.', 'mmclipq.', 'mmengine.'])
def test_registered_types_with_a_scope_are_accepted(intact, tmp_path, prefix):
    names = {'mmdet.': 'YOLOV3', 'mmclipq.': 'ClipConv', 'mmengine.': 'Conv2d'}

    def change(artifact):
        if prefix == 'mmdet.':
            artifact.config['model']['type'] = prefix + names[prefix]
        else:
            artifact.config['model']['backbone']['conv_cfg'] = {'type': prefix + names[prefix]}

    assert isinstance(load_int8(altered(intact, tmp_path, change)), YOLOV3)


def test_foreign_calls_in_a_file_are_refused(intact, tmp_path):
    def change(artifact):
        call = ir.FloatCall('evil', ir.FLOAT, 'function', 'os.system', ('true',))
        (graph,) = artifact.graphs
        changed = ir.Int8Graph((*graph.nodes, call), graph.outputs, graph.constants)
        artifact.graphs = (changed,)

    with pytest.raises(ArtifactError, match=r"digits\.clipq: evil: found function 'os.system'"):
        load_int8(altered(intact, tmp_path, change))


def test_parameters_that_do_not_fit(intact, tmp_path):
    def change(artifact):
        artifact.parameters['backbone.extra'] = torch.zeros(1)

    with pytest.raises(ArtifactError, match=r"digits\.clipq: .* first 'backbone\.extra'"):
        load_int8(altered(intact, tmp_path, change))


def test_unknown_backend(intact):
    with pytest.raises(ClipQError, match="found backend 'fpga'"):
        load_int8(intact, backend='fpga')


def test_a_part_without_a_type_is_told_in_one_line(intact, tmp_path):
    def change(artifact):
        del artifact.config['model']['neck']['type']

    with pytest.raises(ArtifactError, match=r'digits\.clipq: model config: ') as caught:
        load_int8(altered(intact, tmp_path, change))
    assert '\n' not in str(caught.value)


def test_a_detector_that_cannot_predict_is_told_when_it_is_loaded(intact, tmp_path):
    """Graphs alone may still be wanted, as exports do."""

    def change(artifact):
        del artifact.config['model']['test_cfg']

    path = altered(intact, tmp_path, change)
    with pytest.raises(ArtifactError, match=r'digits\.clipq: found a Int8YOLOV3 that fails on an'):
        load_int8(path)
    assert load_int8(path, predicts=False).int8_backend is not None


@pytest.mark.parametrize(
    'change',
    [
        lambda settings: settings.pop('nms'),
        lambda settings: settings.pop('max_per_img'),
        lambda settings: settings.update(max_per_img=(1, 2)),
        lambda settings: settings['nms'].update(iou_threshold='half'),
        lambda settings: settings['nms'].update(iou_threshold=[1, 2, 3]),
        lambda settings: settings['nms'].update(num_classes=2),
        lambda settings: settings.update(nms_pre='many'),
        lambda settings: settings.update(score_thr='low'),
    ],
)
def test_settings_that_only_boxes_meet_are_told_when_it_is_loaded(intact, tmp_path, change):
    path = altered(intact, tmp_path, lambda a: change(a.config['model']['test_cfg']))
    with pytest.raises(ArtifactError, match=r'digits\.clipq: '):
        load_int8(path)


def test_outputs_that_the_head_does_not_read(intact, tmp_path):
    def change(artifact):
        (graph,) = artifact.graphs
        (maps,) = graph.outputs['head']
        artifact.graphs = (ir.Int8Graph(graph.nodes, {'head': (maps[:1],)}, graph.constants),)

    with pytest.raises(ArtifactError, match=r'digits\.clipq: found '):
        load_int8(altered(intact, tmp_path, change))


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('head', 'neck', "the head 'neck'"),
        ('head', 'rpn_head', ''),
        ('captured', 'backbone', 'captured=backbone, wanted list'),
        ('captured', ['nowhere'], 'parameters that do not fit'),
        ('parts', {'dense': True, 'boxes': 3, 'modules': []}, 'found 1 graphs, wanted as many'),
        ('parts', {'dense': 1, 'boxes': 0, 'modules': []}, 'found 1 graphs'),
        ('parts', {'dense': True, 'boxes': 0, 'modules': [('neck',)]}, 'found 1 graphs'),
        ('pipeline', [{'type': 'Resize', 'scale': 'x', 'nonsense': 1}], 'builds no detector'),
    ],
)
def test_layouts_that_do_not_fit(intact, tmp_path, key, value, message):
    def change(artifact):
        artifact.config[key] = value

    with pytest.raises(ArtifactError, match=r'digits\.clipq: ') as caught:
        load_int8(altered(intact, tmp_path, change))
    assert message in str(caught.value)


LOAD = 'import sys, mmclipq; mmclipq.load_int8(sys.argv[1], backend=sys.argv[2])'


def test_a_runtime_opens_files_of_its_own_when_it_is_imported(intact, tmp_path):
    """In a fresh process: OpenVINO reads the number that it has given its user."""
    if find_spec('openvino') is None or find_spec('onnx') is None:
        pytest.skip('OpenVINO or ONNX is not installed')
    (tmp_path / 'intel').mkdir()
    (tmp_path / 'intel' / 'openvino_ga_cid').write_text('11111111-2222-3333-4444-555555555555')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', LOAD, str(intact), 'openvino'],
        capture_output=True,
        text=True,
        env={**os.environ, 'HOME': str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
