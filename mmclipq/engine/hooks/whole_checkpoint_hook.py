"""MMEngine's ``CheckpointHook`` whose files are whole or absent, whenever the process is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ...errors import cannot_write
from ...graph.writing import write_atomically

BACKEND = 'mmclipq_whole'
OUTDATED = 'outdated_ckpts'
"""Key of the message hub: checkpoints that go once the one that holds this list is in place."""

VALIDATED = 'validated_epoch'
"""Key of the message hub: the epoch behind which validation came to its end."""


class WholeFiles(LocalBackend):
    """Local files that appear under their names when all of them is on the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Raises:
            ClipQError: if the system does not let it be written; an older one stays.
        """
        try:
            write_atomically(filepath, obj)
        except OSError as error:
            raise cannot_write(filepath, error) from error


register_backend(BACKEND, WholeFiles, force=True)


class _Later:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any, runner: Runner) -> None:
        self._backend, self._hub = backend, runner.message_hub
        self._hub.update_info(OUTDATED, [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._hub.update_info(OUTDATED, [*self._hub.get_info(OUTDATED), str(path)])

    rmtree = remove

    def remove_now(self) -> None:
        for path in self._hub.get_info(OUTDATED):
            remove(self._backend, path)
        self._hub.update_info(OUTDATED, [])


def remove(backend: Any, path: str) -> None:
    """Remove a checkpoint, a file or a folder, if it is there."""
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):
        backend.rmtree(path)


class WholeCheckpointHook(CheckpointHook):
    """Writes each checkpoint whole, then ``last_checkpoint``, and only then removes older ones.

    MMEngine's own removes the older one first and writes in place, so that a training that is
    killed in between has none to go on with. What is still to be removed stands in the checkpoint
    itself; a training that is resumed removes it first.
    """

    backend_args: dict[str, Any] | None
    file_backend: Any

    def of_local_files(self, runner: Runner) -> None:
        """Write local files whole; other places, such as object stores, have their own ways."""
        place = self.out_dir or runner.work_dir
        local = type(get_file_backend(place, backend_args=self.backend_args)) is LocalBackend
        if local and self.file_client_args is None:
            self.backend_args = {**(self.backend_args or {}), 'backend': BACKEND}

    def before_train(self, runner: Runner) -> None:
        hub = runner.message_hub
        outdated = hub.get_info(OUTDATED) if OUTDATED in hub.runtime_info else []
        super().before_train(runner)
        if is_main_process():
            for path in outdated:
                remove(self.file_backend, path)
        self.file_backend = _Later(self.file_backend, runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                oldest = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, oldest))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            WholeFiles().put(self.last_ckpt.encode(), Path(runner.work_dir) / 'last_checkpoint')
            self.file_backend.remove_now()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        runner.message_hub.update_info(VALIDATED, runner.epoch)
        super().after_val_epoch(runner, metrics)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        # Where no other checkpoint was written behind the best one, which removes them.
        if is_main_process():
            self.file_backend.remove_now()
