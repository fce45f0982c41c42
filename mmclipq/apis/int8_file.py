"""Writes an int8 detector to a ``.clipq`` file and builds it again from one."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.dataset import Compose
from torch import nn

from ..attention import packed_parameters
from ..backends.base import backend_class, check_name
from ..detector import Int8Module, Int8Parts, check_parts, to_int8
from ..errors import ClipQError
from ..graph.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from ..graph.limits import LimitError, Limits
from ..graph.signature import is_form
from .building import counted
from .calibration_data import find_test_pipeline
from .detectors import build_detector
from .file_config import check_config, check_pipeline, image_size
from .guarded import guarded
from .trial import check_prediction

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

    Raises:
        ClipQError: if the file cannot be written, or its config would not be read again: it names
            other files, say, as a distilled detector does its teacher.
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
    check_config(config['model'], path, 'model')
    try:
        return save_artifact(path, Artifact(quantized.graphs, parameters, config, meta))
    except OSError as error:
        raise ClipQError(f'{path}: found {error.strerror}, wanted a place to write to') from error


def _covered(model: nn.Module, captured: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that ``captured`` layers have, and only they."""
    packed = packed_parameters(model, captured)
    return (*(f'{name}.' for name in captured), *(f'{path}.{name}' for path, name in packed))


_HEADS = (None, 'rpn_head', 'bbox_head')
_MOST_CLASSES = 1 << 17


def _has(value: Any, path: str | os.PathLike, what: str, kind: type, inner: type | None) -> None:
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, kind) or (
        inner is not None and not all(isinstance(item, inner) for item in items)
    ):
        raise ArtifactError(f'{path}: found {what}={str(value)[:60]}, wanted {kind.__name__}')


def _checked(artifact: Artifact, path: str | os.PathLike, limits: Limits) -> None:
    """Return if config and meta data of a file have the types that their readers expect."""
    config, meta = artifact.config, artifact.meta
    for key, kind, inner in (
        ('model', dict, None), ('pipeline', list, dict), ('captured', list, str),
        ('left', dict, str), ('clipq', dict, None),
    ):  # fmt: skip
        if key in config or key in ('model', 'captured'):
            _has(config.get(key), path, key, kind, inner)
    if config.get('head') not in _HEADS:
        raise ArtifactError(f'{path}: found the head {config["head"]!r}, wanted one of {_HEADS}')
    check_config(config['model'], path, 'model')
    check_pipeline(config.get('pipeline', []), path, limits)
    for key, most in (('classes', _MOST_CLASSES), ('palette', _MOST_CLASSES)):
        value = meta.get(key, ())
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise ArtifactError(f'{path}: found {key} that are no list, wanted one')
    if not all(isinstance(name, str) and len(name) < 1000 for name in meta.get('classes', ())):
        raise ArtifactError(f'{path}: found classes that are no names, wanted texts')
    for colour in meta.get('palette', ()):
        if not isinstance(colour, (list, tuple)) or not all(type(v) is int for v in colour):
            raise ArtifactError(f'{path}: found the colour {colour!r}, wanted three numbers')


def _layout(artifact: Artifact) -> dict[str, Any]:
    """Which graph is what; files of format version 2 hold the dense one and those of the boxes."""
    count = len(artifact.graphs)
    layout = artifact.config.get('parts', {'dense': True, 'boxes': count - 1, 'modules': []})
    if not isinstance(layout, dict) or set(layout) != {'dense', 'boxes', 'modules'}:
        raise ArtifactError(f'found parts={str(layout)[:60]}, wanted dense, boxes and modules')
    dense, boxes, modules = layout['dense'], layout['boxes'], layout['modules']
    whole = isinstance(dense, bool) and type(boxes) is int and isinstance(modules, list)
    if not whole or boxes < 0 or dense + boxes + len(modules) != count:
        raise ArtifactError(f'found {count} graphs, wanted as many as parts={str(layout)[:60]}')
    for entry in modules:
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or not is_form(entry[1]):
            raise ArtifactError(f'found the module {str(entry)[:60]}, wanted a path and a call')
    return layout


def _parts(artifact: Artifact, path: str | os.PathLike) -> Int8Parts:
    config, graphs = artifact.config, list(artifact.graphs)
    try:
        layout = _layout(artifact)
        dense = graphs.pop(0) if layout['dense'] else None
        boxes, graphs = graphs[: layout['boxes']], graphs[layout['boxes'] :]
        modules = [
            Int8Module(module, form, graph)
            for (module, form), graph in zip(layout['modules'], graphs, strict=True)
        ]
        _has(config.get('captured'), path, 'captured', list, str)
        parts = Int8Parts(
            dense, config.get('head'), config['captured'], tuple(boxes), tuple(modules)
        )
        check_parts(parts)
    except ClipQError as error:
        raise ArtifactError(f'{path}: {error}') from error
    return parts


def load_parts(path: str | os.PathLike, limits: Limits | None = None) -> Int8Parts:
    """The integer graphs of a ``.clipq`` file; raises ArtifactError as :func:`load_int8` does."""
    return _parts(load_artifact(path, limits), path)


def load_int8(
    path: str | os.PathLike,
    device: str = 'cpu',
    backend: str = 'auto',
    limits: Limits | None = None,
    predicts: bool = True,
) -> nn.Module:
    """The detector of a ``.clipq`` file, ready for ``predict`` and ``test_step``.

    Everything that the file says is checked here, see ``SECURITY.md``: what is wrong with it shows
    now, as a :class:`~mmclipq.errors.ClipQError`, and not with the first image.

    Args:
        path: The file.
        device: Where everything runs.
        backend: Name of the backend, or ``'auto'``.
        limits: On memory and work that the file may ask for; by default those of
            :class:`mmclipq.graph.limits.Limits` and the environment.
        predicts: Whether the detector must predict on an image; exports need graphs alone.

    Returns:
        An :class:`mmclipq.Int8Detector` with ``cfg`` and ``dataset_meta`` as MMDetection's
        inference functions want them.

    Raises:
        ArtifactError: if the file is damaged, newer, or does not fit its own config.
        LimitError: if it asks for more than ``limits``.
        ClipQError: if the backend does not exist.
    """
    check_name(backend)
    limits = limits or Limits.from_environment()
    backend_class(backend, device)
    artifact = load_artifact(path, limits)
    try:
        parts = _parts(artifact, path)
        _checked(artifact, path, limits)
        steps = artifact.config.get('pipeline', [])
        with guarded(path):
            detector = _built(artifact, path, limits)
            Compose(copy.deepcopy(steps))
            detector = to_int8(detector, parts, backend, device)
            if predicts:
                check_prediction(detector, parts, image_size(steps), path, limits)
    except ClipQError as error:
        kind = LimitError if isinstance(error, LimitError) else ArtifactError
        text = ' '.join(str(error).split())
        raise kind(text if text.startswith(f'{path}') else f'{path}: {text}') from error
    except Exception as error:  # of a library that met what the file says
        reason = (str(error).strip() or type(error).__name__).split('\n')[0][:200]
        raise ArtifactError(
            f'{path}: found a config that builds no detector ({reason}), wanted one; export it '
            'again with the versions that are installed here'
        ) from error
    detector.dataset_meta = dict(artifact.meta)
    detector.cfg = Config(
        dict(
            model=artifact.config['model'],
            test_dataloader=dict(dataset=dict(pipeline=steps)),
            default_scope='mmdet',
        )
    )
    return detector


def _built(artifact: Artifact, path: str | os.PathLike, limits: Limits) -> nn.Module:
    """The stock detector of the file's config with the parameters of what stays in float."""
    config = artifact.config
    with counted(limits, str(path)):
        detector = build_detector(config['model'])
    if not isinstance(detector, BaseDetector):
        raise ArtifactError(f'{path}: found a {type(detector).__name__}, wanted a detector')
    missing, unexpected = detector.load_state_dict(artifact.parameters, strict=False)
    covered = _covered(detector, config['captured'])
    missing = [key for key in missing if not key.startswith(covered)]
    if missing or unexpected:
        raise ArtifactError(
            f'{path}: found parameters that do not fit its config, first '
            f'{(missing + unexpected)[0]!r}; export it again with this version of mmdet'
        )
    return detector
