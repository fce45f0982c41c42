"""Exported files: what is written, refused and read again, and what it detects."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmclipq.apis import Int8Inferencer, exported_detector
from mmclipq.apis.export_file import ExportOptions, export_file, exportable_graphs
from mmclipq.apis.exported_detector import load_detector, load_exported
from mmclipq.apis.int8_file import load_parts
from mmclipq.detector import Int8Module, plain_samples
from mmclipq.errors import ClipQError
from mmclipq.exporters.builder import ExportError
from mmclipq.exporters.seal import sealed

onnx = pytest.importorskip('onnx')


@pytest.fixture(scope='module', params=['onnx', 'openvino'])
def exported(request, intact, tmp_path_factory):
    pytest.importorskip({'onnx': 'onnxruntime', 'openvino': 'openvino'}[request.param])
    suffix = {'onnx': '.onnx', 'openvino': '.xml'}[request.param]
    path = tmp_path_factory.mktemp('exported') / f'model{suffix}'
    export_file(intact, path, ExportOptions(format=request.param, end2end=True))
    return path


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    random = np.random.default_rng(0)
    for index in range(3):
        pixels = random.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{index}.png'), cv2.blur(pixels, (7, 7)))
    return folder


def test_the_inferencer_takes_it(exported, intact, pictures):
    wanted = Int8Inferencer(intact, show_progress=False)(str(pictures))['predictions']
    found = Int8Inferencer(exported, show_progress=False)(str(pictures))['predictions']
    assert len(found) == 3
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(ours['scores']) == pytest.approx(len(theirs['scores']), abs=3)
        count = min(5, len(theirs['scores']))
        # Single codes differ between runtimes.
        np.testing.assert_allclose(ours['scores'][:count], theirs['scores'][:count], atol=0.05)
    assert sum(len(theirs['scores']) for theirs in wanted)


@pytest.mark.parametrize('size', [(64, 96), (96, 96), (160, 128)])
def test_batch_and_size_are_dynamic(exported, size):
    """Four images at once give what each of them gives alone."""
    detector = load_exported(exported)
    images = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(0))
    together = detector.predict(images, plain_samples(images))
    alone = [detector.predict(image[None], plain_samples(image[None]))[0] for image in images]
    assert sum(len(sample.pred_instances) for sample in together)
    for ours, theirs in zip(together, alone, strict=True):
        assert len(ours.pred_instances) == len(theirs.pred_instances)
        torch.testing.assert_close(
            ours.pred_instances.scores, theirs.pred_instances.scores, rtol=0, atol=1e-5
        )


def test_it_carries_what_it_needs(exported):
    detector = load_exported(exported)
    assert detector.dataset_meta['classes'] == tuple('0123456789')
    assert detector.cfg.test_dataloader.dataset.pipeline[0]['type'].endswith('LoadImageFromFile')
    assert detector.data_preprocessor.pad_size_divisor == 32
    assert detector.runtime in ('onnxruntime', 'openvino')
    with pytest.raises(ClipQError, match="found backend 'cpu', wanted auto or"):
        load_detector(exported, backend='cpu')


def test_weights_are_a_quarter(exported, intact):
    size = sum(p.stat().st_size for p in exported.parent.iterdir())
    if exported.suffix == '.onnx':
        model = onnx.load(exported)
        weights = sum(np.prod(i.dims) for i in model.graph.initializer if i.data_type == 3)
        assert weights < size < 1.35 * weights  # names take the rest in so small a model
        texts = {p.key: p.value for p in model.metadata_props}
        assert json.loads(texts['classes']) == list('0123456789')
        assert json.loads(texts['mean'])
        assert texts['channel_order'] in ('RGB', 'BGR')
    assert 'mmclipq' in exported.read_bytes().decode('latin1')


def test_a_graph_alone_is_no_detector(intact, tmp_path):
    pytest.importorskip('onnxruntime')
    (written,) = export_file(intact, tmp_path / 'dense.onnx')
    with pytest.raises(ClipQError, match='found no end-to-end model, wanted one that'):
        load_exported(written)
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    with pytest.raises(ClipQError, match=r'broken\.onnx: found no readable model'):
        load_exported(tmp_path / 'broken.onnx')


def changed(exported, tmp_path, change):
    """A copy of an ``.onnx`` file with another model and the right checksum."""
    if exported.suffix != '.onnx':
        pytest.skip('ONNX alone')
    model = onnx.load(exported)
    change(model)
    path = tmp_path / 'changed.onnx'
    path.write_bytes(sealed(model.SerializeToString(), '.onnx'))
    return path


def copied(exported, tmp_path):
    for file in exported.parent.glob(f'{exported.stem}.*'):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / exported.name


def test_one_altered_byte_is_named_before_the_runtime_sees_it(exported, tmp_path, monkeypatch):
    path = copied(exported, tmp_path)
    load_exported(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for runtime in ('session', 'compiled'):
        monkeypatch.setattr(exported_detector, runtime, lambda *args: pytest.fail('read'))
    with pytest.raises(ClipQError) as caught:
        load_exported(path)
    assert str(caught.value).startswith(f'{path}: found another checksum than the one at its end')


def test_a_file_that_another_tool_has_changed_is_read_without_a_checksum(exported, tmp_path):
    path = copied(exported, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: -len(sealed(b'', path.suffix))])
    assert load_exported(path).dataset_meta['classes'] == tuple('0123456789')


def test_other_inputs_or_outputs_are_named(exported, tmp_path):
    def rename(model):
        for node in model.graph.node:
            for index, name in enumerate(node.output):
                node.output[index] = 'places' if name == 'boxes' else name
        model.graph.output[0].name = 'places'

    path = changed(exported, tmp_path, rename)
    with pytest.raises(ClipQError, match=r'found a model from image to places, scores, labels, w'):
        load_exported(path)


def test_a_model_names_no_other_file(exported, tmp_path):
    (tmp_path / 'x.bin').write_bytes(bytes(1 << 16))

    def outside(model):
        constant = model.graph.initializer[0]
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key='location', value='x.bin')

    path = changed(exported, tmp_path, outside)
    with pytest.raises(ClipQError, match=r'changed\.onnx: found no readable model \(.*xternal'):
        load_exported(path)


@pytest.mark.parametrize(
    ('execute', 'text'),
    [
        (lambda images: 1 / 0, 'found a model that its runtime cannot run on an image of 96 x 64'),
        (lambda images: [np.zeros((1, 5, 4), 'f')] * 3, r'found results of shapes \(1, 5, 4\), '),
    ],
)
def test_what_a_runtime_does_with_an_image_is_a_sentence(
    exported, tmp_path, monkeypatch, execute, text
):
    read = exported_detector._read_onnx
    if exported.suffix != '.onnx':
        pytest.skip('ONNX alone')
    monkeypatch.setattr(exported_detector, '_read_onnx', lambda path: (read(path)[0], execute))
    detector = load_exported(exported)
    images = torch.rand(1, 3, 64, 96)
    with pytest.raises(ClipQError, match=text) as caught:
        detector.predict(images, plain_samples(images))
    assert str(caught.value).startswith(str(exported))


def test_graphs_of_single_modules_are_refused_by_name(intact):
    parts = load_parts(intact)
    assert exportable_graphs(parts) == (parts.graph,)
    module = Int8Module('bbox_head.transformer', ((), {}), parts.graph)
    with pytest.raises(ExportError, match=r'found bbox_head\.transformer as graphs of their own'):
        exportable_graphs(dataclasses.replace(parts, modules=(module,)))
    with pytest.raises(ExportError, match='found a detector whose features are no graph'):
        exportable_graphs(dataclasses.replace(parts, graph=None))


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('a.onnx', dict(format='tflite'), "found format 'tflite', wanted one of"),
        ('a.txt', {}, r'a\.txt: found another ending, wanted an output file named \*\.onnx'),
        ('a.onnx', dict(score_thr=0.5), 'found --score-thr or --iou-thr alone'),
        ('a.onnx', dict(end2end=True, iou_thr=2.0), '--iou-thr: found 2.0, wanted'),
        ('a.json', dict(format='table', end2end=True), 'found --end2end with --format table'),
        ('a.onnx', dict(opset=9), 'found opset 9'),
        ('a.onnx', dict(target='left'), "found target 'left'"),
    ],
)
def test_wrong_options_write_nothing(intact, tmp_path, name, options, message):
    with pytest.raises(ClipQError, match=message):
        export_file(intact, tmp_path / name, ExportOptions(**options))
    assert not list(tmp_path.iterdir())


def test_table_and_header_are_written(intact, tmp_path):
    files = export_file(intact, tmp_path / 'table.json', ExportOptions(format='table'))
    assert sorted(path.name for path in files) == ['table.h', 'table.json']
    content = json.loads((tmp_path / 'table.json').read_text())
    assert content['multiplier_relative_error'] <= 2.0**-31
    assert content['classes'] == list('0123456789')
    assert len(content['graphs'][0]['products']) > 50


def test_a_place_that_cannot_be_written_is_named(intact, tmp_path):
    (tmp_path / 'folder.onnx').mkdir()
    with pytest.raises(
        ClipQError, match=r'folder\.onnx: found a folder, wanted the name of a file'
    ):
        export_file(intact, tmp_path / 'folder.onnx')
    (tmp_path / 'file').write_text('')
    with pytest.raises(ClipQError, match=r'a\.onnx: found .*, wanted a place to write to'):
        export_file(intact, tmp_path / 'file' / 'a.onnx')


def test_interrupted_writing_leaves_nothing(intact, tmp_path, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'replace', interrupted)
    monkeypatch.setattr('os.replace', lambda *a: interrupted(None, None))
    with pytest.raises(KeyboardInterrupt):
        export_file(intact, tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


def test_boxes_of_detectors_that_clip_stay_inside(exported):
    detector = load_exported(exported)
    detector._clip_border = True
    images = torch.randn(2, 3, 96, 128)
    samples = plain_samples(images)
    for sample in samples:
        sample.set_metainfo({'img_shape': (50, 60)})
    for sample in detector.predict(images, samples):
        boxes = sample.pred_instances.bboxes
        assert boxes.min() >= 0
        assert boxes[:, 0::2].max() <= 60
        assert boxes[:, 1::2].max() <= 50
