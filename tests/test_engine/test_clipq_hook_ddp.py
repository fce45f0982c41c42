"""ClipQHook on two ranks: one set of ranges and weights although the ranks see other data."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name('ddp_worker.py')
FIRST = 'backbone.conv1.conv'


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


@pytest.fixture
def ranks(small_config, tmp_path) -> list[dict]:
    """Results of both ranks after one epoch."""
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,  # as MMEngine's runner has it
        find_unused_parameters=True,
    )
    cfg = small_config(
        launcher='pytorch',
        model_wrapper_cfg=wrapper,
        **{'train_dataloader.batch_size': 3, 'env_cfg.dist_cfg.backend': 'gloo'},
        **{'custom_hooks': [dict(type='mmclipq.ClipQHook'), dict(type='mmclipq.Int8ExportHook')]},
    )
    cfg.merge_from_dict({f'val_{part}': None for part in ('cfg', 'dataloader', 'evaluator')})
    cfg.dump(tmp_path / 'config.py')
    shared = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()), 'WORLD_SIZE': '2'}
    processes = [
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', WORKER, tmp_path / 'config.py', tmp_path],
            env={**os.environ, **shared, 'OMP_NUM_THREADS': '1'}
            | {'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
        ends = '\n'.join(output[-1500:] for output in outputs)
        assert [process.returncode for process in processes] == [0, 0], ends
    finally:
        for process in processes:
            process.kill()
    files = sorted(Path(cfg.work_dir).glob('*.clipq'))
    assert [file.name for file in files] == ['epoch_1_int8.clipq']
    return [torch.load(tmp_path / f'rank{rank}.pt', weights_only=True) for rank in range(2)]


def test_ranks_end_with_the_same_ranges_and_weights(ranks):
    first, second = ranks
    assert first['wrapper'] == 'MMDistributedDataParallel'
    assert first['images']
    assert second['images']
    assert first['images'].isdisjoint(second['images'])
    assert (first['local'][FIRST], second['local'][FIRST]) == (0, 4)
    assert first['ranges'][FIRST][0] == 4
    assert len(first['ranges']) == 75
    assert first['ranges'] == second['ranges']
    assert first['weights'].keys() == second['weights'].keys()
    for name, weight in first['weights'].items():
        assert torch.equal(second['weights'][name], weight), name
