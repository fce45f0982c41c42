"""From a float detector to an integer graph, a file, and back to a detector."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry, init_default_scope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..detector import captured_layers, to_int8
from ..errors import ClipQError
from ..graph.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from ..graph.capture import capture
from ..graph.ir import Int8Graph
from ..graph.lower import lower
from ..prepare import clip_layers, find_weight_ranges, prepare_model, prepare_options


@dataclass
class Quantized:
    """A detector's integer part.

    Attributes:
        graph: What the backends execute.
        head: Name of the dense head inside the graph, or None.
        captured: Paths of the layers that the graph computes.
        left: Name and reason of everything that stays in float.
    """

    graph: Int8Graph
    head: str | None
    captured: list[str]
    left: dict[str, str]


def cannot_be_negative(preprocessor: nn.Module) -> bool:
    """Whether images with pixels from 0 to 255 stay non-negative after the preprocessing."""
    mean = getattr(preprocessor, 'mean', None)
    if not getattr(preprocessor, '_enable_normalize', False) or mean is None:
        return getattr(preprocessor, 'pad_value', 0) >= 0
    return bool((mean <= 0).all()) and preprocessor.pad_value >= 0


def _image_batches(model: nn.Module, batches: Iterable[Any]) -> Iterable[Tensor]:
    for batch in batches:
        if isinstance(batch, Tensor):
            yield batch
        else:
            yield model.data_preprocessor(batch, False)['inputs']


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    clipq: Mapping[str, Any] | None = None,
    method: str = 'mse',
) -> Quantized:
    """Calibrate and lower a built float detector; the detector itself stays executable in float.

    Args:
        model: A detector with its weights loaded, prepared (:func:`mmclipq.prepare_model`) or
            not. If not, it is prepared with the layer options in ``clipq``.
        batches: Calibration data: what a dataloader gives, or preprocessed float32 images.
        clipq: The ``clipq`` section of a config.
        method: How activation ranges are chosen, ``'mse'`` or ``'max'``.

    Raises:
        ClipQError: for a detector that cannot be captured, NaN weights, no images, and so on.
    """
    if next(clip_layers(model), None) is None:
        prepare_model(model, **prepare_options(clipq))
    find_weight_ranges(model)
    traced = capture(model)
    graph = lower(
        traced.module,
        _image_batches(model, batches),
        method,
        cannot_be_negative(model.data_preprocessor),
    )
    called = [node.target for node in traced.module.graph.nodes if node.op == 'call_module']
    left = dict(graph.islands)
    if traced.left_out:
        left['dense head'] = traced.left_out
    if hasattr(model, 'roi_head'):
        left['roi_head'] = 'its layers run on dequantized features'
    return Quantized(graph, traced.head, captured_layers(graph, called), left)


def save_int8(
    path: str | os.PathLike, model: nn.Module, quantized: Quantized, cfg: Config, meta: Mapping
) -> int:
    """Write a ``.clipq`` file and return its size in bytes.

    Args:
        path: Where to; written atomically.
        model: The detector that ``quantized`` was made from, for its float parameters.
        quantized: Result of :func:`quantize`.
        cfg: The full config; its model section and test pipeline are stored.
        meta: Class names (``classes``) and colours (``palette``) of the data set.
    """
    covered = tuple(f'{name}.' for name in quantized.captured)
    parameters = {
        key: value for key, value in model.state_dict().items() if not key.startswith(covered)
    }
    config = {
        'model': cfg.model.to_dict(),
        'pipeline': _pipeline(cfg),
        'head': quantized.head,
        'captured': quantized.captured,
        'left': quantized.left,
        'clipq': cfg.get('clipq', Config()).to_dict() if 'clipq' in cfg else {},
    }
    meta = {key: meta[key] for key in ('classes', 'palette') if meta.get(key) is not None}
    return save_artifact(path, Artifact(quantized.graph, parameters, config, meta))


def _pipeline(cfg: Config) -> list[Any]:
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return [dict(step) for step in dataset.get('pipeline', [])]


class _NoRandomWeights(TorchFunctionMode):
    """Skips the random initialisation of layers, whose weights come from a file or the graph."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


_SCOPES = 'mmclipq|mmcv|mmdet|mmengine|mmpretrain|mmcls|mmseg|mmyolo|mmrotate'
_TYPE = re.compile(rf'(({_SCOPES})\.)?[A-Za-z_]\w*')


def _is_registered(kind: str) -> bool:
    """Whether a name with a scope stands in a registry; MMEngine would import anything else."""
    scope, _, name = kind.rpartition('.')
    if not scope:
        return True
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    found = []
    for root in roots:
        root.import_from_location()
        found.append(root)
        if scope != 'mmengine':
            # Its own table is filled only once the scope's package is imported.
            with contextlib.suppress(ImportError):
                importlib.import_module(f'{scope}.registry')
            if (child := root.children.get(scope)) is not None:
                child.import_from_location()
                found.append(child)
    return any(name in registry.module_dict for registry in found)


def _check_types(config: Any, path: str | os.PathLike) -> None:
    """Refuse a type that is a dotted import path: building it would run code of one's choice."""
    if isinstance(config, Mapping):
        kind = config.get('type')
        if isinstance(kind, str) and not (_TYPE.fullmatch(kind) and _is_registered(kind)):
            raise ArtifactError(f'{path}: found the type {kind!r}, wanted a registered name')
        for value in config.values():
            _check_types(value, path)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _check_types(value, path)


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
    config = ConfigDict(_without_pretrained(model_config))
    if random:
        return MODELS.build(config)
    with _NoRandomWeights():
        return MODELS.build(config)


def load_int8(path: str | os.PathLike, device: str = 'cpu', backend: str = 'auto') -> nn.Module:
    """The detector of a ``.clipq`` file, ready for ``predict`` and ``test_step``.

    Args:
        path: The file.
        device: Where everything runs.
        backend: Name of the backend, or ``'auto'``.

    Returns:
        An :class:`mmclipq.Int8Detector` with ``cfg`` and ``dataset_meta`` as MMDetection's
        inference functions want them.

    Raises:
        ArtifactError: if the file is damaged, newer, or does not fit its own config.
        ClipQError: if the backend does not exist.
    """
    artifact = load_artifact(path)
    config = artifact.config
    _check_types(config, path)
    detector = build_detector(config['model'])
    missing, unexpected = detector.load_state_dict(artifact.parameters, strict=False)
    covered = tuple(f'{name}.' for name in config['captured'])
    missing = [key for key in missing if not key.startswith(covered)]
    if missing or unexpected:
        raise ArtifactError(
            f'{path}: found parameters that do not fit its config, first '
            f'{(missing + unexpected)[0]!r}; export it again with this version of mmdet'
        )
    detector = to_int8(
        detector, artifact.graph, config['head'], config['captured'], backend, device
    )
    detector.dataset_meta = dict(artifact.meta)
    detector.cfg = Config(
        dict(
            model=config['model'],
            test_dataloader=dict(dataset=dict(pipeline=config['pipeline'])),
            default_scope='mmdet',
        )
    )
    return detector


def load_float_checkpoint(model: nn.Module, path: str | os.PathLike) -> dict[str, Any]:
    """Load a training checkpoint strictly; returns the whole checkpoint.

    Raises:
        ClipQError: if there is no such file, it is no checkpoint, or it belongs to another
            architecture; the first key or shape that differs is named.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipQError(f'{path}: found no file, wanted a float checkpoint (.pth)')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise ClipQError(
            f'{path}: found no readable checkpoint ({reason}), wanted one that MMEngine wrote'
        ) from error
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping) or not state:
        raise ClipQError(f'{path}: found no state_dict, wanted a checkpoint that MMEngine wrote')
    state = {key.removeprefix('module.'): value for key, value in state.items()}
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
