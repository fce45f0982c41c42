"""Configs as the tools' flags change them: ``--clipq [KEY=VALUE ...]`` and ``--cfg-options``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mmengine.config import Config, DictAction

from ..errors import ClipQError
from .clipq_config import with_clipq


class _Options(DictAction):
    """MMEngine's ``KEY=VALUE`` pairs; given without any, no options."""

    def __call__(self, parser, namespace, values, option_string=None):
        for pair in values:
            if '=' not in pair[1:]:
                raise ClipQError(
                    f'{option_string}: found {pair!r}, wanted KEY=VALUE such as input_range=8, and '
                    'all other arguments before --clipq or after another flag'
                )
        super().__call__(parser, namespace, values, option_string)


def add_clipq_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--clipq``; its value is a dict of options, or None where the flag is not given."""
    parser.add_argument(
        '--clipq',
        nargs='*',
        action=_Options,
        metavar='KEY=VALUE',
        help='add the clipq base and its hooks to the config, and set options of its section',
    )


def parsed_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Entries of a config from the ``KEY=VALUE`` texts of ``--cfg-options``."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options or {}


def read_config(path: str, clipq: Mapping[str, Any] | None, pairs: Sequence[str]) -> Config:
    """The config at ``path`` with the options of ``--clipq``, if it is given, and others."""
    cfg = Config.fromfile(path)
    if clipq is not None:
        cfg = with_clipq(cfg, clipq)
    if pairs:
        cfg.merge_from_dict(parsed_options(pairs))
    return cfg


@contextmanager
def first_config_clipped(options: Mapping[str, Any] | None) -> Iterator[None]:
    """Inside, the first config that is read is :func:`with_clipq` of itself.

    mmdet's tools read the user's config first, and go on with its name for work folder and dumped
    config. Configs that are read later, such as that of a distillation's teacher, stay as they are.

    Args:
        options: Of the section; None to change nothing.
    """
    if options is None:
        yield
        return
    read = Config.fromfile

    def read_first(*args: Any, **kwargs: Any) -> Config:
        patch.stop()
        return with_clipq(read(*args, **kwargs), options)

    patch = mock.patch.object(Config, 'fromfile', staticmethod(read_first))
    patch.start()
    try:
        yield
    finally:
        patch.stop()
