"""Writes an int8 detector to a ``.clipq`` file and builds it again from one."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mmengine
from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS, Registry
from torch import nn

from ..attention import packed_parameters
from ..detector import Int8Module, Int8Parts, to_int8
from ..graph.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from .calibration_data import find_test_pipeline
from .detectors import build_detector

if TYPE_CHECKING:  # running a file needs nothing of what makes one
    from .quantize_model import Quantized


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
    covered = _covered(model, quantized.captured)
    parameters = {
        key: value for key, value in model.state_dict().items() if not key.startswith(covered)
    }
    config = {
        'model': cfg.model.to_dict(),
        'pipeline': [dict(step) for step in find_test_pipeline(cfg) or []],
        'head': quantized.head,
        'parts': {
            'dense': quantized.graph is not None,
            'boxes': len(quantized.boxes),
            'modules': [(module.path, module.form) for module in quantized.modules],
        },
        'captured': quantized.captured,
        'left': quantized.left,
        'clipq': cfg.get('clipq', Config()).to_dict() if 'clipq' in cfg else {},
    }
    meta = {key: meta[key] for key in ('classes', 'palette') if meta.get(key) is not None}
    return save_artifact(path, Artifact(quantized.graphs, parameters, config, meta))


def _covered(model: nn.Module, captured: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that ``captured`` layers have, and only they."""
    packed = packed_parameters(model, captured)
    return (*(f'{name}.' for name in captured), *(f'{path}.{name}' for path, name in packed))


_SCOPES = 'mmclipq|mmcv|mmdet|mmengine|mmpretrain|mmcls|mmseg|mmyolo|mmrotate'
_TYPE = re.compile(rf'(({_SCOPES})\.)?[A-Za-z_]\w*')


def _registries(scope: str) -> Iterator[Registry]:
    """Registries that may know names of ``scope``, each filled from the modules of its kind.

    Those of a detector's parts and pipeline come first: a name that stands there imports no others.
    """
    first = [MODELS, TASK_UTILS, TRANSFORMS]
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    for root in first + [root for root in roots if root not in first]:
        root.import_from_location()
        yield root
        if scope != 'mmengine':
            # Its own table is filled only once the scope's package is imported.
            with contextlib.suppress(ImportError):
                importlib.import_module(f'{scope}.registry')
            if (child := root.children.get(scope)) is not None:
                child.import_from_location()
                yield child


def _is_registered(kind: str) -> bool:
    """Whether a name with a scope stands in a registry; MMEngine would import anything else."""
    scope, _, name = kind.rpartition('.')
    return not scope or any(name in registry.module_dict for registry in _registries(scope))


def check_types(config: Any, path: str | os.PathLike) -> None:
    """Refuse a type that is a dotted import path: building it would run code of one's choice."""
    if isinstance(config, Mapping):
        kind = config.get('type')
        if isinstance(kind, str) and not (_TYPE.fullmatch(kind) and _is_registered(kind)):
            raise ArtifactError(f'{path}: found the type {kind!r}, wanted a registered name')
        for value in config.values():
            check_types(value, path)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_types(value, path)


def _parts(artifact: Artifact) -> Int8Parts:
    config, graphs = artifact.config, list(artifact.graphs)
    # Files of format version 2 hold the dense graph and those of the boxes.
    layout = config.get('parts', {'dense': True, 'boxes': len(graphs) - 1, 'modules': []})
    dense = graphs.pop(0) if layout['dense'] else None
    boxes, graphs = graphs[: layout['boxes']], graphs[layout['boxes'] :]
    modules = [
        Int8Module(path, form, graph)
        for (path, form), graph in zip(layout['modules'], graphs, strict=True)
    ]
    return Int8Parts(dense, config['head'], config['captured'], tuple(boxes), tuple(modules))


def load_parts(path: str | os.PathLike) -> Int8Parts:
    """The integer graphs of a ``.clipq`` file; raises ArtifactError as :func:`load_int8` does."""
    return _parts(load_artifact(path))


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
    check_types(config, path)
    detector = build_detector(config['model'])
    missing, unexpected = detector.load_state_dict(artifact.parameters, strict=False)
    covered = _covered(detector, config['captured'])
    missing = [key for key in missing if not key.startswith(covered)]
    if missing or unexpected:
        raise ArtifactError(
            f'{path}: found parameters that do not fit its config, first '
            f'{(missing + unexpected)[0]!r}; export it again with this version of mmdet'
        )
    detector = to_int8(detector, _parts(artifact), backend, device)
    detector.dataset_meta = dict(artifact.meta)
    detector.cfg = Config(
        dict(
            model=config['model'],
            test_dataloader=dict(dataset=dict(pipeline=config['pipeline'])),
            default_scope='mmdet',
        )
    )
    return detector
