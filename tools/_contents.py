"""What lies in a folder, as digests that times and logs do not change."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LOGS = re.compile(r'\d{8}_\d{6}')
"""Folders of MMEngine's logs, one for each run."""
_TIMES = {'time', 'data_time', 'eta', 'memory', 'cfg', 'config', 'experiment_name', 'milliseconds',
          'float_ms', 'int8_ms'}  # fmt: skip
"""Keys whose values no two runs have in common; ``cfg`` says how a training was started."""
_PLACES = {'last_ckpt', 'best_ckpt', 'keep_ckpt_ids', 'outdated_ckpts', 'resumed_keys'}
"""Keys about files of a training, which the folder itself shows."""


def _update(digest: Any, value: Any) -> None:
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            if str(key).rpartition('/')[2] not in _TIMES | _PLACES:
                digest.update(f'{key}:'.encode())
                _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f'{len(value)},'.encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, HistoryBuffer):
        _update(digest, value.data)
    elif isinstance(value, torch.Tensor):
        digest.update(f'{value.dtype}{tuple(value.shape)}'.encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(value.tobytes())
    else:
        digest.update(repr(value).encode())


def digest_of(value: Any) -> str:
    """Digest of nested values, without times."""
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint that MMEngine wrote; one that is not whole is an error."""
    import torch

    content = torch.load(path, map_location='cpu', weights_only=False)
    for key in ('epoch', 'iter'):  # where the log stands, not the training
        content['message_hub']['runtime_info'].pop(key, None)
    return content


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _LOGS.fullmatch(path.name):
            yield from _files(path)
        elif path.is_file():
            yield path


def _digest(path: Path, history: bool = True) -> str:
    data = path.read_bytes()
    if path.suffix == '.pth':
        try:
            content = checkpoint(path)
        except Exception as error:
            return f'damaged: {type(error).__name__}'
        if not history:  # a checkpoint is written again when validation finds it to be the best
            del content['message_hub']
        return digest_of(content)
    if path.name == 'report.json':
        return digest_of(json.loads(data))
    if path.name in ('index.html', 'costs.png'):  # has times in it
        return f'ends with {data[-12:]!r}'
    if path.suffix == '.xml':
        from mmclipq.exporters.openvino_ir import weights_file

        data += weights_file(path).read_bytes()
    return hashlib.sha256(data).hexdigest()


def _is_result(name: str) -> bool:
    """Whether a file is not hidden, not temporary, not kept for going on."""
    hidden = any(part.startswith('.') for part in Path(name).parts)
    return not hidden and not name.startswith('tmp/') and not name.endswith('.progress')


def _is_ours(name: str) -> bool:
    """Whether a file is not a temporary one of a library, such as MMEngine's copies of configs."""
    return not name.startswith('tmp/') or name.startswith('tmp/mmclipq-')


def contents(folder: Path, everything: bool = False) -> dict[str, str]:
    """Digest of every result in a folder by its name.

    Args:
        folder: The folder.
        everything: Also of other files, and with the history in checkpoints.
    """
    wanted = _is_ours if everything else _is_result
    names = {str(path.relative_to(folder)): path for path in _files(folder)}
    return {name: _digest(path, everything) for name, path in names.items() if wanted(name)}


def torn(folder: Path) -> list[str]:
    """What cannot be read in a folder of which nothing else is known, a sentence each."""
    from mmclipq.errors import ClipQError
    from mmclipq.graph.artifact import load_artifact

    found = []
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if not _is_result(name):
            continue
        if path.suffix == '.clipq':
            try:
                load_artifact(path)
            except ClipQError as error:
                found.append(str(error))
        if path.suffix == '.pth' and _digest(path).startswith('damaged'):
            found.append(f'{name} is a damaged checkpoint')
        if path.name == 'last_checkpoint' and not Path(path.read_text()).is_file():
            found.append(f'last_checkpoint names {path.read_text()!r}, which is not there')
    return found
