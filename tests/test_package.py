"""The package itself: a cheap import, lazy names, base configs, safe checkpoints, the wheel."""

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from torch import nn

import mmclipq
from mmclipq import _compat
from mmclipq.apis import load_float_checkpoint

ROOT = Path(__file__).parents[1]


def test_import_loads_no_mmdet_and_starts_no_device():
    code = (
        'import sys, mmclipq, torch\n'
        "heavy = [m for m in ('mmdet', 'mmcv', 'cv2', 'onnx', 'onnxruntime', 'openvino')"
        ' if m in sys.modules]\n'
        'print(heavy, torch.cuda.is_initialized())\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[] False'


@pytest.mark.parametrize('name', mmclipq.__all__)
def test_every_public_name_resolves(name):
    assert getattr(mmclipq, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mmclipq' has no attribute 'prepare_modle'"):
        _ = mmclipq.prepare_modle


def test_base_config_is_a_file_that_loads():
    path = Path(mmclipq.base_config())
    assert path.name == 'clipq.py'
    assert path.parent.name == '_base_'
    assert 'mmclipq.ClipQHook' in path.read_text()


def test_base_config_of_a_wrong_name_is_named():
    with pytest.raises(FileNotFoundError, match="no base config 'clipk' of mmclipq"):
        mmclipq.base_config('clipk')


def test_training_history_loads_with_the_safe_loader(tmp_path):
    history = HistoryBuffer([1.0, 2.5, np.float64(3.0)], [1, 1, 2])
    content = {
        'message_hub': {'log_scalars': {'train/loss': history}, 'best': np.float32(0.25)},
        'meta': {'counts': np.arange(3)},
    }
    torch.save(content, tmp_path / 'history.pth')
    loaded = torch.load(tmp_path / 'history.pth', weights_only=True)
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.data[0].tolist() == [1.0, 2.5, 3.0]
    assert buffer.data[1].tolist() == [1, 1, 2]
    assert buffer.mean() == history.mean()
    assert loaded['message_hub']['best'] == np.float32(0.25)
    assert loaded['meta']['counts'].tolist() == [0, 1, 2]


class Calls:
    """Unpickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(torch.Tensor, 'mean'), (np.ndarray, '__reduce__'), (HistoryBuffer, '__init__')],
    ids=['tensor', 'array', 'constructor'],
)
def test_checkpoint_that_reaches_for_anything_else_is_refused(tmp_path, owner, name):
    torch.save({'state_dict': Calls(getattr, owner, name)}, tmp_path / 'evil.pth')
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r'(?i)getattr|wanted tensors'):
        torch.load(tmp_path / 'evil.pth', weights_only=True)
    with pytest.raises(ValueError, match=rf'{name}.*do not trust the file'):
        _compat._history_method(owner, name)


def test_checkpoint_that_runs_a_command_is_refused(tmp_path):
    target = tmp_path / 'ran'
    torch.save({'state_dict': Calls(os.mkdir, str(target))}, tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError, match='mkdir'):
        torch.load(tmp_path / 'evil.pth', weights_only=True)
    assert not target.exists()


def test_wheel_carries_configs_and_tools(tmp_path):
    for package in ('pip', 'setuptools', 'wheel'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed')
    source = tmp_path / 'source'
    for name in ('mmclipq', 'configs', 'tools'):
        ignore = shutil.ignore_patterns('.mim', '__pycache__')
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source / name)
    options = ['--no-deps', '--no-build-isolation', '--no-index', '-w', str(tmp_path)]
    command = [sys.executable, '-m', 'pip', 'wheel', str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob('mmclipq-*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        files = {p.relative_to(ROOT).as_posix() for p in ROOT.glob(f'{folder}/**/*.py')}
        assert {f'mmclipq/.mim/{name}' for name in files} <= names
    modules = {p.relative_to(ROOT).as_posix() for p in ROOT.glob('mmclipq/**/*.py')}
    # What builds the operators stays with their sources.
    assert {n for n in modules if '/.mim/' not in n and '/csrc/' not in n} <= names
    assert 'mmclipq/.mim/configs/_base_/clipq.py' in names
    assert {'mmclipq/analysis/page/page.html', 'mmclipq/analysis/page/page.css'} <= names
    definitions = {
        p.relative_to(ROOT).as_posix() for p in ROOT.glob('mmclipq/experiments/**/*.yaml')
    }
    assert len(definitions) == 15
    assert definitions <= names
    (folder,) = {name.split('/')[0] for name in names if '.dist-info/' in name}
    assert f'{folder}/licenses/LICENSE' in names
    metadata = zipfile.ZipFile(wheel).read(f'{folder}/METADATA').decode()
    assert 'License-Expression: Apache-2.0' in metadata.splitlines()
    assert 'mmclipq/.mim/model-index.yml' in names
    assert not [name for name in names if name.startswith('tests') or '__pycache__' in name]


def test_ssd_heads_of_mmdet_predict_and_keep_other_errors():
    from mmdet.models.dense_heads import SSDHead

    _compat.mend_heads()
    _compat.mend_heads.__wrapped__()  # again changes nothing

    head = SSDHead.__new__(SSDHead)
    torch.nn.Module.__init__(head)
    assert head.loss_cls is None
    assert not hasattr(head, 'loss_box')
    head.loss_cls = torch.nn.Identity()
    assert isinstance(head.loss_cls, torch.nn.Identity)


def test_a_loader_that_lists_the_same_classes_and_takes_them_off_changes_nothing(tmp_path):
    """As onedl-mmengine's does."""
    history = HistoryBuffer([1.0, np.float64(3.0)], [1, 2])
    torch.save({'loss': history, 'all': np.arange(3)}, tmp_path / 'a.pth')
    bare = [HistoryBuffer, np.ndarray, np.dtype, getattr, type(np.dtype('float64'))]
    with torch.serialization.safe_globals(bare):
        pass
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['loss'].mean() == history.mean()
    assert loaded['all'].tolist() == [0, 1, 2]


def test_a_loader_that_empties_the_list_behind_it_keeps_nobody_from_loading(tmp_path):
    model, path = nn.Linear(1, 1), tmp_path / 'a.pth'
    history = HistoryBuffer([1.0, np.float64(3.0)], [1, 2])
    torch.save({'state_dict': model.state_dict(), 'message_hub': {'loss': history}}, path)
    listed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        load_float_checkpoint(model, path)
    finally:
        torch.serialization.add_safe_globals(listed)
