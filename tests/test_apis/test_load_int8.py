"""What ``load_int8`` refuses: files whose content would run code or does not fit together."""

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
