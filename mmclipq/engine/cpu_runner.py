"""Several processes on a machine without an accelerator."""

from __future__ import annotations

import atexit
import datetime
import gc
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from mmengine.device import get_device
from mmengine.hooks import SyncBuffersHook
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import distributed, nn

from ..errors import ClipQError
from ..registry import RUNNERS

_PORT = '29500'  # torch's own default

# What a launcher says of a process: its number, how many there are, its number on its machine.
_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def process_environment(launcher: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with which ``torch.distributed`` finds the other processes.

    Args:
        launcher: ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        environment: Variables that the launcher has set. ``MASTER_ADDR`` and ``MASTER_PORT`` stay;
            without them slurm is asked for its first machine, and the port is 29500.

    Raises:
        ClipQError: if the launcher is unknown or has not started this process.
    """
    if launcher not in _VARIABLES:
        raise ClipQError(
            f'--launcher: found {launcher!r}, wanted one of {", ".join(_VARIABLES)} or none'
        )
    names = _VARIABLES[launcher]
    if absent := [name for name in names if name not in environment]:
        hint = {
            'pytorch': 'torchrun --nproc-per-node 2 tools/train.py ... --launcher pytorch',
            'slurm': 'srun --ntasks 2 python tools/train.py ... --launcher slurm',
            'mpi': 'mpirun -np 2 python tools/train.py ... --launcher mpi',
        }[launcher]
        raise ClipQError(
            f'--launcher {launcher}: found no variable {absent[0]}, wanted a process that this '
            f'launcher has started; write {hint}'
        )
    rank, size, local = (environment[name] for name in names)
    address = environment.get('MASTER_ADDR')
    if address is None:
        address = _slurm_master(environment) if launcher == 'slurm' else '127.0.0.1'
    return {
        'RANK': rank,
        'WORLD_SIZE': size,
        'LOCAL_RANK': local,
        'MASTER_ADDR': address,
        'MASTER_PORT': environment.get('MASTER_PORT', _PORT),
    }


def _slurm_master(environment: Mapping[str, str]) -> str:
    """Name of the first machine of a slurm job."""
    nodes = environment.get('SLURM_NODELIST', '')
    try:
        done = subprocess.run(
            ['scontrol', 'show', 'hostname', nodes], capture_output=True, text=True, check=True
        )
        return done.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise ClipQError(
            f'--launcher slurm: found no first machine in SLURM_NODELIST={nodes!r}, wanted '
            'scontrol to name it; set MASTER_ADDR'
        ) from None


def leave_processes() -> None:
    """Leave the process group, and let go of wrapped models, which hold on to it.

    Its threads would run on while the interpreter and the libraries are taken down, and now and
    then end a process with an abort after all work was done.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()  # a wrapped model is part of cycles


@RUNNERS.register_module()
class CpuRunner(Runner):
    """MMEngine's runner, whose processes meet over gloo where there is no accelerator.

    MMEngine sets a CUDA device in every process that a launcher has started, whatever the backend
    in ``env_cfg.dist_cfg``, and gives DDP a device. On a machine without an accelerator this runner
    joins the process group itself, which MMEngine then leaves alone, names no device to DDP, and
    makes synchronised batch norms, which PyTorch has for GPUs alone, plain ones: each process then
    normalises its own share of the batch, and the statistics become their mean over the processes
    after each epoch, ahead of checkpoint and validation. Elsewhere, and without a launcher, it is
    MMEngine's.

    The tools take it by themselves; in MMDetection's own tools write ``--cfg-options
    runner_type=mmclipq.CpuRunner``.
    """

    def setup_env(self, env_cfg: dict) -> None:
        if self._over_gloo() and not distributed.is_initialized():
            os.environ.update(process_environment(self.launcher, os.environ))
            seconds = (env_cfg.get('dist_cfg') or {}).get('timeout')
            timeout = None if seconds is None else datetime.timedelta(seconds=seconds)
            distributed.init_process_group('gloo', timeout=timeout)
            atexit.register(leave_processes)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if not self._over_gloo():
            return super().wrap_model(model_wrapper_cfg, model)
        self.cfg.sync_bn = None
        model = revert_sync_batchnorm(model)
        wrapper: dict[str, Any] = {
            'type': 'MMDistributedDataParallel',
            'broadcast_buffers': False,
            'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
        }
        if model_wrapper_cfg is not None:
            wrapper = {'type': wrapper['type'], **model_wrapper_cfg}
        kind = MODEL_WRAPPERS.get(wrapper['type'])
        if kind is not None and issubclass(kind, nn.parallel.DistributedDataParallel):
            wrapper['device_ids'] = None
        return super().wrap_model(wrapper, model)

    def register_hooks(
        self, default_hooks: dict | None = None, custom_hooks: list | None = None
    ) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        if self._over_gloo() and not any(isinstance(h, SyncBuffersHook) for h in self.hooks):
            self.register_hook(SyncBuffersHook())

    def _over_gloo(self) -> bool:
        return bool(self.distributed) and get_device() == 'cpu'
