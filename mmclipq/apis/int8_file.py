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

from .._compat import as_detector
from ..attention import packed_parameters
from ..backends.base import backend_class, check_name
from ..detector import Int8Parts, to_int8
from ..errors import ClipQError, cannot_write, first_line
from ..graph.artifact import Artifact, ArtifactError, load_artifact, pack_artifact, save_artifact
from ..graph.limits import LimitError, Limits
from .building import counted
from .calibration_data import annotations_read, find_test_pipeline
from .detectors import build_detector
from .file_config import check_config, image_size
from .guarded import guarded
from .int8_layout import check_content, read_parts
from .trial import check_prediction

if TYPE_CHECKING:  # running a file needs nothing of what makes one
    from .quantize_model import Quantized


COMPRESSIONS = ('fast', 'best')
"""zstd, and entropy coding with adaptive models."""


def save_int8(
    path: str | os.PathLike,
    model: nn.Module,
    quantized: Quantized,
    cfg: Config,
    meta: Mapping,
    compress: str = 'fast',
) -> int:
    """Write a ``.clipq`` file and return its size in bytes.

    Args:
        path: Where to; written atomically.
        model: The detector that ``quantized`` was made from, for its float parameters.
        quantized: Result of :func:`quantize`.
        cfg: The full config; its model section and test pipeline are stored.
        meta: Class names (``classes``) and colours (``palette``) of the data set.
        compress: ``'fast'``, or ``'best'`` for fewer bytes that take longer to read.

    Raises:
        ClipQError: if ``compress`` is another word, or the file cannot be written, or its config
            would not be read again: it names other files, say, as a distilled detector does its
            teacher.
    """
    dense = _dense(compress)
    artifact = _artifact(path, model, quantized, cfg, meta)
    try:
        return save_artifact(path, artifact, dense)
    except OSError as error:
        raise cannot_write(path, error) from error


def int8_size(
    model: nn.Module, quantized: Quantized, cfg: Config, meta: Mapping, compress: str = 'fast'
) -> int:
    """Bytes of the file that :func:`save_int8` would write; raises what it raises."""
    return len(pack_artifact(_artifact('size', model, quantized, cfg, meta), _dense(compress)))


def check_compression(compress: str) -> None:
    """Return if ``compress`` is one of :data:`COMPRESSIONS`, else raise ClipQError."""
    if compress not in COMPRESSIONS:
        raise ClipQError(f'compress: found {compress!r}, wanted one of {COMPRESSIONS}')


def _dense(compress: str) -> bool:
    check_compression(compress)
    return compress == 'best'


def _artifact(
    path: str | os.PathLike, model: nn.Module, quantized: Quantized, cfg: Config, meta: Mapping
) -> Artifact:
    """What the file at ``path`` holds."""
    covered = _covered(model, quantized.captured)
    parameters = {
        key: value for key, value in model.state_dict().items() if not key.startswith(covered)
    }
    config = {
        'model': _without_teacher(cfg.model.to_dict()),
        'pipeline': _without_other_packages(find_test_pipeline(cfg) or []),
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
    return Artifact(quantized.graphs, parameters, config, meta)


def _without_other_packages(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps but for loaders of special annotations, which no bare image has.

    That of panoptic ones is not even built without a package of its own.
    """
    return [dict(step) for step in pipeline if not annotations_read(step)]


def _without_teacher(config: dict[str, Any]) -> dict[str, Any]:
    """The config of what predicts: a teacher is a file that only training reads."""
    if str(config['type']).rpartition('.')[2] != 'KnowledgeDistillationSingleStageDetector':
        return config
    training = ('teacher_config', 'teacher_ckpt', 'eval_teacher')
    kept = {key: value for key, value in config.items() if key not in training}
    return {**kept, 'type': 'mmdet.SingleStageDetector'}


def _covered(model: nn.Module, captured: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that ``captured`` layers have, and only they."""
    packed = packed_parameters(model, captured)
    return (*(f'{name}.' for name in captured), *(f'{path}.{name}' for path, name in packed))


def load_parts(path: str | os.PathLike, limits: Limits | None = None) -> Int8Parts:
    """The integer graphs of a ``.clipq`` file; raises ArtifactError as :func:`load_int8` does."""
    return read_parts(load_artifact(path, limits), path)


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
    # OpenVINO keeps files of its own in the user's folder, which content may not have opened.
    backend_class(backend, device).import_packages()
    artifact = load_artifact(path, limits)
    try:
        parts = read_parts(artifact, path)
        check_content(artifact, path, limits)
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
        reason = first_line(error)
        raise ArtifactError(
            f'{path}: found a config that builds no detector ({reason}), wanted one; export it '
            'again with the versions that are installed here'
        ) from error
    told = as_detector(detector)
    told.dataset_meta = dict(artifact.meta)
    told.cfg = Config(
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
