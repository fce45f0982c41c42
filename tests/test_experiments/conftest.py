"""Jobs done in this process, and configs that need none of a data set's worker processes."""

import os
import sys

import pytest
from finished import Done

from mmclipq.experiments import recipe, worker
from mmclipq.experiments.engine import Store
from mmclipq.experiments.files import RESULT, write


def do_here(folder, threads):
    """Do a job in this process, whose variables MMEngine reads."""
    write(folder / RESULT, worker.do(folder))
    return Done()


@pytest.fixture
def budget():
    """Entries that make a training of a tiny data set short."""
    found = {'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 4}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        found |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
    return found


@pytest.fixture
def digits(digits_root, monkeypatch):
    """The tiny digits, where configs of the experiments find them."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits_root))
    recipe._read_config.cache_clear()
    yield digits_root
    recipe._read_config.cache_clear()


@pytest.fixture
def here(tmp_path):
    """A store whose jobs run in this process."""
    return Store(tmp_path / 'work', do_here)


@pytest.fixture
def trees(digits_root, tmp_path, monkeypatch):
    """A tiny VOC devkit and COCO tree below ``data`` of a folder that is the current one."""
    tools = os.path.join(os.path.dirname(__file__), '..', '..', 'tools')
    monkeypatch.syspath_prepend(os.path.abspath(tools))
    import make_trees

    make_trees.main([str(digits_root), '--out', str(tmp_path / 'data')])
    monkeypatch.chdir(tmp_path)
    assert 'make_trees' in sys.modules
    return tmp_path
