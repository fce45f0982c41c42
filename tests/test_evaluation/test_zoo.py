"""A zoo: what stands in its list, one row from a checkpoint to a file, and rows that are kept."""

import hashlib
import http.server
import json
import math
import subprocess
import threading
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from mmclipq.apis import load_int8
from mmclipq.apis.mmdet_tools import find_config
from mmclipq.errors import ClipQError
from mmclipq.evaluation import zoo
from mmclipq.evaluation.zoo.measure import fetched


def test_mmdets_own_checkpoint_is_found_by_the_config():
    config = find_config('yolox_tiny_8xb8-300e_coco.py')
    address = zoo.published_checkpoint(config)
    assert address.startswith('https://')
    assert Path(address).name.startswith('yolox_tiny_8x8_300e_coco_')
    assert zoo.Entry.make(config).checkpoint == address


def test_a_config_without_published_checkpoint_wants_one(tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text('model = dict()\n')
    with pytest.raises(ClipQError, match='found no published checkpoint in a metafile.yml'):
        zoo.Entry.make(str(config))
    with pytest.raises(ClipQError, match='mine.pth'):
        zoo.Entry.make(str(config), str(tmp_path / 'mine.pth'))


@pytest.fixture
def files(tmp_path, cfg, model):
    """Config and checkpoint of a small detector that finds something."""
    config, checkpoint = tmp_path / 'small.py', tmp_path / 'small.pth'
    cfg.merge_from_dict({'model.test_cfg.score_thr': 0.0, 'model.test_cfg.conf_thr': 0.0})
    cfg.dump(str(config))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
    return config, checkpoint


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'config': 'a.py'}, 'found dict, wanted a list'),
        ([], 'found list, wanted a list'),
        ([{'checkpoint': 'a.pth'}], 'as detector 1, wanted config and'),
        ([{'config': 'a.py', 'chekpoint': 'a.pth'}], 'as detector 1, wanted config and'),
        ([{'config': 'absent.py'}], 'absent.py: found no file'),
    ],
)
def test_a_wrong_list_is_told(tmp_path, content, said):
    path = tmp_path / 'list.yaml'
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ClipQError, match=said):
        zoo.read_list(str(path))


def test_a_list_names_options(tmp_path, files):
    path = tmp_path / 'list.yaml'
    wanted = {'config': str(files[0]), 'checkpoint': str(files[1]), 'name': 'few'}
    path.write_text(yaml.safe_dump([{**wanted, 'cfg_options': {'model.test_cfg.max_per_img': 5}}]))
    (entry,) = zoo.read_list(str(path))
    assert entry == zoo.Entry('few', *map(str, files), {'model.test_cfg.max_per_img': 5})


def test_every_path_below_the_data_root_moves():
    cfg = Config(
        dict(
            data_root='data/coco/',
            test_evaluator=[dict(ann_file='data/coco/annotations/a.json')],
            test_dataloader=dict(dataset=dict(data_root='data/coco/', ann_file='a.json')),
            work_dir='other/data/coco/',
        )
    )
    moved = zoo.with_data_root(cfg, '/there/coco')
    assert moved.data_root == '/there/coco/'
    assert moved.test_evaluator[0].ann_file == '/there/coco/annotations/a.json'
    assert moved.test_dataloader.dataset == {'data_root': '/there/coco/', 'ann_file': 'a.json'}
    assert moved.work_dir == 'other/data/coco/'
    assert cfg.data_root == 'data/coco/'
    with pytest.raises(ClipQError, match='found no data_root'):
        zoo.with_data_root(Config(dict(a=1)), '/there')


@pytest.fixture
def server(tmp_path):
    """Address of a server of a folder, and the folder."""
    folder = tmp_path / 'served'
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_address[1]}', folder
        running.shutdown()


def test_a_download_is_checked_kept_and_whole(server, tmp_path):
    address, folder = server
    content = b'weights'
    digest = hashlib.sha256(content).hexdigest()
    (folder / f'a-{digest[:8]}.pth').write_bytes(content)
    (folder / 'a-00000000.pth').write_bytes(content)
    kept = tmp_path / 'kept'
    path = fetched(f'{address}/a-{digest[:8]}.pth', kept)
    assert path.read_bytes() == content
    (folder / path.name).unlink()
    assert fetched(f'{address}/{path.name}', kept) == path
    for wrong in ('a-00000000.pth', 'absent.pth'):
        with pytest.raises(ClipQError, match=f'{wrong}: found no such download'):
            fetched(f'{address}/{wrong}', kept)
    assert list(kept.iterdir()) == [path]


def test_rows_are_measured_once_and_failures_stop_nothing(files, tmp_path, monkeypatch):
    config, checkpoint = files
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'meta': {}}, other)
    entries = [
        zoo.Entry.make(str(config), str(other), 'wrong'),
        zoo.Entry.make(str(config), str(checkpoint), 'right'),
    ]
    out, settings = tmp_path / 'zoo', zoo.Settings(calib_images=2)
    rows = zoo.fill(entries, settings, out)
    assert 'another architecture' in rows['wrong']['failure']
    row = rows['right']
    assert row['images'] == 6
    assert not math.isnan(row['ap_int8'])
    assert row['low'] <= row['ap_int8'] - row['ap_float'] <= row['high']
    assert row['weights'][0] == row['weights'][1] > 0
    file = out / 'right' / row['file']
    assert row['sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert row['int8_bytes'] == file.stat().st_size < row['float_bytes'] / 2
    load_int8(file)

    def refuse(*arguments, **options):
        raise AssertionError('it is measured again')

    monkeypatch.setattr(subprocess, 'run', refuse)
    again = zoo.fill(entries[1:], settings, out)
    assert json.dumps(again['right']) == json.dumps(row)
    with pytest.raises(AssertionError, match='measured again'):
        zoo.fill(entries[1:], zoo.Settings(calib_images=3), out)
    text = zoo.page(rows, 'python tools/zoo.py', {'versions': zoo.versions(), 'threads': 1})
    assert '| wrong | failed |' in text
    assert f'`{row["sha256"]}`' in text


def test_two_detectors_want_two_names(files, tmp_path):
    entry = zoo.Entry.make(*map(str, files))
    with pytest.raises(ClipQError, match='small: found two detectors of this name'):
        zoo.fill([entry, entry], zoo.Settings(), tmp_path)
