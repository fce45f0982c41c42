"""Detectors that an exported end-to-end file computes, for evaluation and inference."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..backends.base import backend_class
from ..backends.runtimes.onnxruntime import session
from ..backends.runtimes.openvino import compiled
from ..errors import ClipQError, first_line
from ..exporters.openvino_ir import weights_file
from ..exporters.seal import check_seal
from ..graph.limits import Limits
from .building import counted
from .file_config import check_config, check_pipeline
from .guarded import guarded
from .int8_file import load_int8

RUNTIMES = {'.onnx': 'onnxruntime', '.xml': 'openvino'}
"""Runtime that executes a file, by its suffix."""


def on_cpu_alone(path: str | os.PathLike, backend: str) -> bool:
    """Whether a file, or the backend of that name, executes on the CPU wherever the model is."""
    return Path(path).suffix in RUNTIMES or backend in ('cpu', *RUNTIMES.values())


_TEXTS = 'part', 'data_preprocessor', 'pipeline', 'classes', 'clip_border'
Execute = Callable[[np.ndarray], Sequence[np.ndarray]]
"""From images ``(N, 3, H, W)`` to boxes ``(N, K, 4)``, scores and labels ``(N, K)``."""
_INPUTS, _OUTPUTS = ['image'], ['boxes', 'scores', 'labels']


class ExportedDetector(BaseDetector):
    """A detector whose ``predict`` is an exported file, from images to boxes.

    Attributes:
        runtime: Name of the runtime.
    """

    def __init__(
        self,
        execute: Execute,
        data_preprocessor: Any,
        runtime: str,
        clip_border: bool,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self._execute, self.runtime, self._clip_border = execute, runtime, clip_border

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Boxes of preprocessed images, float32 ``(N, 3, H, W)``, in pixels of the original images
        if ``rescale``; clipped to the image inside its padding if the detector clips."""
        found = self._execute(np.ascontiguousarray(batch_inputs.cpu().numpy()))
        results = []
        for boxes, scores, labels, sample in zip(*found, batch_data_samples, strict=True):
            there = scores > 0
            boxes = torch.from_numpy(boxes[there])
            if self._clip_border:
                height, width = sample.img_shape[:2]
                boxes = boxes.clamp(min=0).min(boxes.new_tensor([width, height] * 2))
            if rescale:
                boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            results.append(
                InstanceData(
                    bboxes=boxes,
                    scores=torch.from_numpy(scores[there]),
                    labels=torch.from_numpy(labels[there]),
                )
            )
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ClipQError('found a call of an exported file beside predict, wanted predict')

    loss = _forward = extract_feat = _refuse


def _check_names(path: Path, inputs: list[str], outputs: list[str]) -> None:
    """Return if a model has the inputs and outputs of an end-to-end one.

    Raises:
        ClipQError: if it has others.
    """
    if inputs != _INPUTS or set(outputs) != set(_OUTPUTS):
        raise ClipQError(
            f'{path}: found a model from {", ".join(inputs)} to {", ".join(outputs)}, wanted one '
            f'from {_INPUTS[0]} to {", ".join(_OUTPUTS)}; export it again with --end2end'
        )


def _read_onnx(path: Path) -> tuple[dict[str, str], Execute]:
    runner = session(path.read_bytes())
    texts = runner.get_modelmeta().custom_metadata_map
    if texts.get('part') == 'end2end':
        names = (
            [node.name for node in nodes] for nodes in (runner.get_inputs(), runner.get_outputs())
        )
        _check_names(path, *names)
    return texts, lambda images: runner.run(_OUTPUTS, {'image': images})


def _read_openvino(path: Path) -> tuple[dict[str, str], Execute]:
    import openvino

    source = openvino.Core().read_model(path, weights_file(path))
    texts = {
        key: source.get_rt_info(['mmclipq', key]).astype(str)
        for key in _TEXTS
        if source.has_rt_info(['mmclipq', key])
    }
    if texts.get('part') == 'end2end':
        names = (
            [port.get_any_name() for port in ports] for ports in (source.inputs, source.outputs)
        )
        _check_names(path, *names)
    model = compiled(source)

    def execute(images: np.ndarray) -> list[np.ndarray]:
        # A request for each call lets several threads use the model.
        result = model.create_infer_request().infer({'image': images})
        return [result[name] for name in _OUTPUTS]

    return texts, execute


def _checked(path: Path, execute: Execute) -> Execute:
    """``execute`` whose errors are sentences and whose results are boxes, scores and labels.

    What is computed is the runtime's affair: only with an image does it show what a model does.
    """

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        try:
            found = execute(images)
        except Exception as error:
            raise ClipQError(
                f'{path}: found a model that its runtime cannot run on an image of '
                f'{images.shape[3]} x {images.shape[2]} pixels ({_reason(error)}), wanted one that '
                'tools/export.py wrote; export it again'
            ) from error
        boxes, scores, labels = found
        shape = len(images), *scores.shape[1:2]
        kinds = boxes.dtype.name, scores.dtype.name, labels.dtype.kind
        if (boxes.shape, scores.shape, labels.shape, *kinds) != (
            (*shape, 4), shape, shape, 'float32', 'float32', 'i'
        ):  # fmt: skip
            raise ClipQError(
                f'{path}: found results of shapes {boxes.shape}, {scores.shape}, {labels.shape} '
                f'and types {boxes.dtype}, {scores.dtype}, {labels.dtype}, wanted boxes and scores '
                'in float32 and labels, as tools/export.py writes models; export it again'
            )
        return found

    return run


def _reason(error: Exception) -> str:
    """What a runtime says in the end: OpenVINO names source files first and the reason last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ' '.join(lines[-1].split())[:200]


def _with_tuples(value: Any) -> Any:
    """JSON's lists of numbers and names as tuples, as transforms want them; lists of dicts stay."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_with_tuples(item) for item in value]
        return items if any(isinstance(item, dict) for item in items) else tuple(items)
    return value


def load_exported(path: str | os.PathLike, device: str = 'cpu') -> ExportedDetector:
    """The detector of an end-to-end file, with ``cfg`` and ``dataset_meta`` as MMDetection's
    inference functions want them.

    Raises:
        ClipQError: if the file cannot be read, is not one that ``tools/export.py --end2end`` wrote,
            or its runtime is not installed.
    """
    path = Path(path)
    backend_class(RUNTIMES[path.suffix], device)
    limits = Limits.from_environment()
    if not path.is_file():
        raise ClipQError(f'{path}: found no file, wanted an exported one')
    limits.check('file', path.stat().st_size, str(path))
    try:
        check_seal(path)
        texts, execute = (_read_onnx if path.suffix == '.onnx' else _read_openvino)(path)
    except ClipQError:
        raise
    except Exception as error:
        raise ClipQError(
            f'{path}: found no readable model ({_reason(error)}), wanted one'
        ) from error
    if texts.get('part') != 'end2end' or not texts.keys() >= set(_TEXTS):
        raise ClipQError(
            f'{path}: found no end-to-end model, wanted one that tools/export.py --end2end wrote'
        )
    try:
        parts = {key: _with_tuples(json.loads(texts[key])) for key in _TEXTS[1:]}
        _check_parts(parts, path, limits)
        init_default_scope('mmdet')
        with guarded(path), counted(limits, str(path)):
            detector = ExportedDetector(
                _checked(path, execute),
                parts['data_preprocessor'],
                RUNTIMES[path.suffix],
                parts['clip_border'],
            )
            Compose(copy.deepcopy(list(parts['pipeline'])))
    except ClipQError:
        raise
    except Exception as error:  # of a library that met what the file says
        reason = first_line(error)
        raise ClipQError(
            f'{path}: found metadata that build no detector ({reason}), wanted those that '
            'tools/export.py writes; export it again'
        ) from error
    detector.dataset_meta = {'classes': tuple(parts['classes'])}
    detector.cfg = Config(
        dict(
            test_dataloader=dict(dataset=dict(pipeline=list(parts['pipeline']))),
            default_scope='mmdet',
        )
    )
    return detector.eval()


def _check_parts(parts: dict[str, Any], path: Path, limits: Limits) -> None:
    """Return if the metadata of an exported file are what its reader expects."""
    classes, preprocessor = parts['classes'], parts['data_preprocessor']
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        raise ClipQError(f'{path}: found classes that are no names, wanted texts')
    if not isinstance(preprocessor, dict) or not isinstance(parts['clip_border'], bool):
        raise ClipQError(f'{path}: found no data preprocessor or clip_border, wanted both')
    check_config(preprocessor, path, 'data_preprocessor')
    check_pipeline(list(parts['pipeline']), path, limits)


def load_detector(path: str | os.PathLike, device: str = 'cpu', backend: str = 'auto') -> nn.Module:
    """The detector of a ``.clipq`` file or of an exported end-to-end file, by its suffix.

    Args:
        path: The file.
        device: Where everything runs.
        backend: Backend of a ``.clipq`` file; an exported one has its own.

    Raises:
        ClipQError: as :func:`load_exported` and :func:`mmclipq.apis.load_int8` do.
    """
    runtime = RUNTIMES.get(Path(path).suffix)
    if runtime is None:
        return load_int8(path, device, backend)
    if backend not in ('auto', runtime):
        raise ClipQError(f'{path}: found backend {backend!r}, wanted auto or {runtime} for it')
    return load_exported(path, device)
