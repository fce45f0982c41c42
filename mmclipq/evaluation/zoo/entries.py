"""Which detectors a zoo holds: configs, and where their float checkpoints are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load

from ...apis.mmdet_tools import check_file, find_config
from ...errors import ClipQError

_KEYS = {'config', 'checkpoint', 'name', 'cfg_options'}


@dataclass(frozen=True)
class Entry:
    """One detector.

    Attributes:
        name: Of its row and its folder.
        config: Path of its config.
        checkpoint: Path or address of the float checkpoint.
        options: Entries of the config that are replaced, by their dotted names.
    """

    name: str
    config: str
    checkpoint: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        config: str,
        checkpoint: str | None = None,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Entry:
        """An entry whose files are there.

        Args:
            config: A file, or one of mmdet's configs by its name.
            checkpoint: A file or an address; by default what mmdet has published for the config.
            name: By default the config's.
            options: As of ``--cfg-options``.

        Raises:
            ClipQError: if a file is not there, or mmdet has published none for the config.
        """
        path = find_config(config)
        if checkpoint is None:
            checkpoint = published_checkpoint(path)
        if not is_address(checkpoint):
            check_file(checkpoint, 'a float checkpoint (.pth)')
        name = Path(path).stem if name is None else name
        if not name or Path(name).name != name or name.startswith('.'):
            raise ClipQError(f'{config}: found the name {name!r}, wanted that of a folder')
        return cls(name, path, checkpoint, dict(options or {}))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_address(checkpoint: str) -> bool:
    return checkpoint.startswith(('http://', 'https://'))


def published_checkpoint(config: str) -> str:
    """Address of the checkpoint that stands beside ``config`` in mmdet's ``metafile.yml``.

    Raises:
        ClipQError: if there is none.
    """
    path = Path(config).resolve()
    metafile = path.with_name('metafile.yml')
    if metafile.is_file():
        for model in (load(metafile) or {}).get('Models', ()):
            same = Path(model.get('Config', '')).parts[-2:] == path.parts[-2:]
            if same and model.get('Weights'):
                return model['Weights']
    raise ClipQError(
        f'{config}: found no published checkpoint in a metafile.yml beside it, wanted one, or its '
        'file or address behind the config'
    )


def read_list(path: str) -> list[Entry]:
    """The entries of a YAML file, a list of ``config`` and, if wanted, further keys.

    Raises:
        ClipQError: naming the entry that is wrong.
    """
    try:
        found = load(path)
    except Exception as error:  # the reader's own kinds
        raise ClipQError(f'{path}: found no readable YAML ({str(error).splitlines()[0]})') from None
    if not isinstance(found, list) or not found:
        raise ClipQError(f'{path}: found {type(found).__name__}, wanted a list of detectors')
    entries = []
    for number, item in enumerate(found, 1):
        if not isinstance(item, dict) or 'config' not in item or item.keys() - _KEYS:
            raise ClipQError(
                f'{path}: found {str(item)[:80]!r} as detector {number}, wanted config and, if '
                f'wanted, {", ".join(sorted(_KEYS - {"config"}))}'
            )
        entries.append(
            Entry.make(
                item['config'], item.get('checkpoint'), item.get('name'), item.get('cfg_options')
            )
        )
    return entries


def with_data_root(cfg: Config, root: str) -> Config:
    """``cfg`` with every text that begins with its ``data_root`` below ``root`` instead.

    Raises:
        ClipQError: if it has no ``data_root``.
    """
    old = cfg.get('data_root')
    if not isinstance(old, str) or not old:
        raise ClipQError(
            f'{cfg.filename}: found no data_root, wanted one that --data-root can replace'
        )
    new = str(Path(root)) + ('/' if old.endswith('/') else '')

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return new + value[len(old) :] if value.startswith(old) else value
        if isinstance(value, Mapping):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(moved(inner) for inner in value)
        return value

    return Config(moved(cfg.to_dict()), filename=cfg.filename)
