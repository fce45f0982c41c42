"""The inferencer gives what the detector itself predicts, for every kind of input."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate

from mmclipq.apis import Int8Inferencer, load_int8
from mmclipq.apis.inferencer import default_device
from mmclipq.errors import ClipQError


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Noise of three sizes; lossless, so that arrays and files hold the same pixels."""
    folder = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for index, shape in enumerate([(60, 90), (90, 60), (64, 64), (60, 90)]):
        pixels = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{index}.png'), cv2.blur(pixels, (5, 5)))
    return folder


@pytest.fixture
def inferencer(intact):
    return Int8Inferencer(intact, show_progress=False)


def wanted(path, files):
    """Predictions of the loaded detector with the file's own pipeline."""
    detector = load_int8(path)
    steps = [s for s in detector.cfg.test_dataloader.dataset.pipeline
             if 'LoadAnnotations' not in s['type']]  # fmt: skip
    pipeline = Compose(steps)
    found = []
    for index, file in enumerate(files):
        data = pseudo_collate([pipeline({'img_path': str(file), 'img_id': index})])
        with torch.no_grad():
            (sample,) = detector.test_step(data)
        found.append(sample.pred_instances)
    return found


def test_predictions_are_the_detectors(inferencer, intact, images):
    files = sorted(images.iterdir())
    results = inferencer(str(images))['predictions']
    assert len(results) == 4
    for result, instances in zip(results, wanted(intact, files), strict=True):
        assert result['bboxes'] == instances.bboxes.tolist()
        assert result['scores'] == instances.scores.tolist()
        assert result['labels'] == instances.labels.tolist()
    assert sum(len(result['scores']) for result in results)


def test_arrays_lists_and_batches_give_the_same(inferencer, images):
    files = [str(path) for path in sorted(images.iterdir())]
    single = inferencer(files)['predictions']
    assert inferencer([cv2.imread(file) for file in files])['predictions'] == single
    assert inferencer(files[0])['predictions'] == inferencer(images / '0.png')['predictions']
    assert inferencer(files[0])['predictions'] == single[:1]
    # Images of one size: padding to a larger one is part of what the detector sees.
    same = [files[0], files[3]] * 2
    assert inferencer(same, batch_size=3)['predictions'] == inferencer(same)['predictions']
    assert len(inferencer(files, batch_size=3)['predictions']) == 4  # several sizes at once


def test_workers_change_nothing_but_the_time(intact, inferencer, images):
    several = Int8Inferencer(intact, show_progress=False, workers=3)
    files = [str(path) for path in sorted(images.iterdir())] * 3
    for batch_size in (1, 2):
        wanted = inferencer(files, batch_size=batch_size)['predictions']
        assert several(files, batch_size=batch_size)['predictions'] == wanted
    with pytest.raises(ClipQError, match='workers: found 0'):
        Int8Inferencer(intact, workers=0)


def test_pictures_and_json_are_written(inferencer, images, tmp_path):
    results = inferencer(
        str(images), out_dir=str(tmp_path), no_save_pred=False, pred_score_thr=0.0
    )['predictions']
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if p.is_file())
    assert written == [f'preds/{i}.json' for i in range(4)] + [f'vis/{i}.png' for i in range(4)]
    assert [json.loads((tmp_path / 'preds' / f'{i}.json').read_text()) for i in range(4)] == results


def test_arrays_are_drawn_in_their_colours(inferencer):
    blue = np.zeros((64, 96, 3), np.uint8)
    blue[..., 0] = 200
    found = inferencer(blue, return_vis=True, pred_score_thr=1.1)['visualization']
    assert found[0].reshape(-1, 3).tolist() == [[0, 0, 200]] * (64 * 96)  # pictures are RGB


def test_video_is_read_frame_by_frame(inferencer, images, tmp_path):
    frames = [cv2.imread(str(images / '0.png')), cv2.imread(str(images / '3.png'))] * 2
    video = tmp_path / 'some.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'MJPG'), 5, (90, 60))
    for frame in frames:
        writer.write(frame)
    writer.release()
    capture = cv2.VideoCapture(str(video))
    read = [capture.read()[1] for _ in frames]
    out = tmp_path / 'out'
    results = inferencer(str(video), batch_size=3, out_dir=str(out), no_save_pred=False)
    assert results['predictions'] == inferencer(read)['predictions']
    assert json.loads((out / 'preds' / 'some.json').read_text()) == results['predictions']
    assert [p.name for p in (out / 'vis').iterdir()] == ['some.avi']
    drawn = cv2.VideoCapture(str(out / 'vis' / 'some.avi'))
    seen = [drawn.read()[0] for _ in range(5)]
    assert seen == [True] * 4 + [False]


def test_an_unreadable_image_costs_no_result_before_it(inferencer, tmp_path):
    folder, out = tmp_path / 'images', tmp_path / 'out'
    folder.mkdir()
    for name in 'abd':
        cv2.imwrite(str(folder / f'{name}.png'), np.full((64, 64, 3), 128, np.uint8))
    (folder / 'c.png').write_bytes((folder / 'd.png').read_bytes()[:40])
    with pytest.raises(ClipQError, match=r'c\.png: found no readable image'):
        inferencer(str(folder), out_dir=str(out), no_save_pred=False)
    assert {path.name for path in (out / 'preds').iterdir()} == {'a.json', 'b.json'}
    assert {path.name for path in (out / 'vis').iterdir()} == {'a.png', 'b.png'}
    for path in (out / 'preds').iterdir():
        assert json.loads(path.read_text()).keys() >= {'scores', 'bboxes'}


def test_video_that_fails_leaves_nothing(inferencer, tmp_path):
    (tmp_path / 'broken.avi').write_bytes(b'no video')
    out = tmp_path / 'out'
    with pytest.raises(ClipQError, match='broken.avi: found no readable video'):
        inferencer(str(tmp_path / 'broken.avi'), out_dir=str(out))
    assert not [p for p in out.rglob('*') if p.is_file()]
    with pytest.raises(ClipQError, match='found return_vis with a video'):
        inferencer(str(tmp_path / 'broken.avi'), return_vis=True)


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        ('nowhere.jpg', r'nowhere\.jpg: found no file, wanted an image'),
        ('', r'found no image, wanted \.bmp'),
        ('broken.jpg', r'broken\.jpg: found no readable image'),
        (np.zeros((4, 4), np.uint8), r'found an array \(4, 4\) of uint8'),
        (np.zeros((4, 4, 3), np.float32), r'found an array \(4, 4, 3\) of float32'),
    ],
)
def test_wrong_inputs_are_named(inferencer, tmp_path, inputs, message):
    if isinstance(inputs, str):
        (tmp_path / 'empty').mkdir()
        (tmp_path / 'broken.jpg').write_bytes(b'no image')
        inputs = str(tmp_path / inputs) if inputs else str(tmp_path / 'empty')
    with pytest.raises(ClipQError, match=message):
        inferencer(inputs)


def test_results_of_one_name_are_refused(inferencer, images, tmp_path):
    other = tmp_path / '0.jpg'
    other.write_bytes((images / '0.png').read_bytes())
    both = [str(images / '0.png'), str(other)]
    assert len(inferencer(both)['predictions']) == 2
    with pytest.raises(ClipQError, match=r'0\.jpg: found another image called .*0\.png'):
        inferencer(both, out_dir=str(tmp_path / 'out'))


def test_wrong_calls_are_named(inferencer, intact, tmp_path):
    with pytest.raises(ClipQError, match='batch size: found 0'):
        inferencer('x.jpg', batch_size=0)
    with pytest.raises(ClipQError, match='found texts, wanted images alone'):
        inferencer('x.jpg', texts='a cat')
    with pytest.raises(ClipQError, match=r'no\.clipq: found no file'):
        Int8Inferencer(tmp_path / 'no.clipq')


def test_a_gpu_is_taken_where_it_can_be_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert default_device('a.clipq', 'auto') == default_device('a.clipq', 'int_mm') == 'cuda'
    assert default_device('a.clipq', 'cpu') == default_device('a.onnx', 'auto') == 'cpu'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert default_device('a.clipq', 'auto') == 'cpu'
