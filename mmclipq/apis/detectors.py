"""Builds stock detectors and loads float checkpoints into them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._compat import load_checkpoint, mend_heads
from ..errors import ClipQError


class _NoRandomWeights(TorchFunctionMode):
    """Skips the random initialisation of layers, whose weights come from a file or the graph."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _without_pretrained(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _without_pretrained(v) for k, v in config.items() if k != 'init_cfg'}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_pretrained(value) for value in config)
    return config


def build_detector(model_config: Mapping[str, Any], random: bool = False) -> nn.Module:
    """The stock detector of a config, on the CPU, without pretrained weights.

    Args:
        model_config: The ``model`` section.
        random: Whether to initialise weights; otherwise they are undefined until loaded.
    """
    init_default_scope('mmdet')
    mend_heads()
    config = ConfigDict(_without_pretrained(model_config))
    try:
        with contextlib.nullcontext() if random else _NoRandomWeights():
            return MODELS.build(config)
    except KeyError as error:
        reason = str(error.args[0]).split('\n')[0].split('. ')[0]
        raise ClipQError(
            f'model config: {reason}; import the package that registers it (custom_imports)'
        ) from error


def read_float_checkpoint(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """The content of a training checkpoint, and its parameters and buffers by name.

    Raises:
        ClipQError: if there is no such file, or it is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipQError(f'{path}: found no file, wanted a float checkpoint (.pth)')
    try:
        checkpoint = load_checkpoint(path)
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise ClipQError(
            f'{path}: found no readable checkpoint ({reason}), wanted one that MMEngine wrote'
        ) from error
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping) or not state:
        raise ClipQError(f'{path}: found no state_dict, wanted a checkpoint that MMEngine wrote')
    return checkpoint, {key.removeprefix('module.'): value for key, value in state.items()}


def load_float_checkpoint(model: nn.Module, path: str | os.PathLike) -> dict[str, Any]:
    """Load a training checkpoint strictly; returns the whole checkpoint.

    Raises:
        ClipQError: if there is no such file, it is no checkpoint, or it belongs to another
            architecture; the first key or shape that differs is named.
    """
    checkpoint, state = read_float_checkpoint(path)
    try:
        # Layers may convert what they load (SVD factors), so only loading tells what fits.
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).split('\n')[1].strip().rstrip('.')
        raise ClipQError(
            f'{path}: found a checkpoint of another architecture ({reason}); wanted one of the '
            f'{type(model).__name__} that the config describes'
        ) from error
    if missing or unexpected:
        side, key = ('lacks', missing[0]) if missing else ('has', unexpected[0])
        raise ClipQError(
            f'{path}: found a checkpoint of another architecture, it {side} {key!r}; '
            f'wanted one of the {type(model).__name__} that the config describes'
        )
    return checkpoint
