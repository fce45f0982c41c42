"""What the pinned MMEngine and MMDetection lack, added from outside: types among it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from torch import Tensor, nn


class Detector(Protocol):
    """What is asked of MMDetection's ``BaseDetector`` beside what every module has."""

    cfg: Any
    data_preprocessor: nn.Module
    dataset_meta: dict[str, Any]

    def predict(self, images: Tensor, samples: list[DetDataSample]) -> list[DetDataSample]:
        """Detections in preprocessed images ``(N, C, H, W)``."""

    def test_step(self, batch: Any) -> list[DetDataSample]:
        """Detections in what a data loader gives."""

    def parse_losses(self, losses: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses' sum, and each by its name."""


def as_detector(detector: nn.Module) -> Detector:
    """``detector`` itself, to the type checker what it is beside a module."""
    return cast('Detector', detector)


def installed_versions(
    modules: Iterable[str] = ('torch', 'mmcv', 'mmdet', 'mmengine'),
) -> dict[str, str]:
    """Versions of packages by the names that they are installed under.

    Two lines of packages bring MMDetection's modules: ``mmdet`` and ``onedl-mmdetection``, say.

    Args:
        modules: What they are imported as; those that are not installed are left out.
    """
    names = metadata.packages_distributions()
    found = {name for module in modules for name in names.get(module, ())}
    return {name: metadata.version(name) for name in sorted(found)}


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr`` in checkpoints: reaches the statistics of HistoryBuffer only."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
        raise ValueError(
            f'checkpoint: found a reference to {name!r} of {owner!r}, wanted tensors, numbers and '
            "MMEngine's training history only; do not trust the file"
        )
    return HistoryBuffer._statistics_methods[name]


@functools.cache
def enable() -> None:
    """Make ``mmclipq::`` config paths resolve and MMEngine's own checkpoints load."""
    from mmengine.config import utils as config_utils

    # MMEngine looks for a distribution's folder, which an editable install does not have, but
    # falls back to the folder of a module if no distribution has that name.
    config_utils.MODULE2PACKAGE.setdefault('mmclipq', 'mmclipq.version')
    _allow_checkpoints()


def load_checkpoint(path: str | os.PathLike) -> Any:
    """Content of a checkpoint that MMEngine wrote, on the CPU, by the safe loader of PyTorch.

    What it may hold is listed again before each load, since others may have emptied the list.
    """
    import torch

    _allow_checkpoints()
    return torch.load(path, map_location='cpu', weights_only=True)


def _allow_checkpoints() -> None:
    """Let the safe loader of PyTorch read MMEngine's own checkpoints.

    Since version 2.6 ``torch.load`` unpickles only tensors and plain containers unless a class is
    listed. MMEngine 0.10 checkpoints hold ``HistoryBuffer`` objects with NumPy values: listing
    these few classes keeps the safe loader for every file.
    """
    import torch

    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_of_checkpoints())


@functools.cache
def _of_checkpoints() -> list[Any]:
    """Classes and functions that MMEngine's checkpoints name, each with its full name.

    Pairs stay when another loader takes the bare classes off the list that it has put there itself,
    as onedl-mmengine's does behind each load.
    """
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer

    HistoryBuffer()  # fills the class's table of statistics
    rebuild: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    numbers = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    dtypes = {type(np.dtype(kind)) for kind in numbers}
    # NumPy 1 and 2 keep the same two functions under different module names.
    names = [
        (function, f'{module}.{function.__name__}')
        for function in (rebuild, scalar)
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
    ]
    plain = (HistoryBuffer, np.ndarray, np.dtype, *dtypes, *numbers)
    return [
        *((kind, f'{kind.__module__}.{kind.__qualname__}') for kind in plain),
        *names,
        (_history_method, 'builtins.getattr'),
        (_history_method, '__builtin__.getattr'),
    ]


def _no_loss(head: Any, name: str) -> Any:
    """An attribute of an SSD head; its ``loss_cls`` is None if it has none."""
    from torch import nn

    try:
        return nn.Module.__getattr__(head, name)
    except AttributeError:
        if name != 'loss_cls':
            raise
        return None


@functools.cache
def mend_heads() -> None:
    """Let MMDetection's SSD heads predict.

    Decoding in MMDetection 3.3 asks every head for ``loss_cls``, whose own activation it would
    take. SSD heads have none and fail in ``predict``, in stock tools, too.
    """
    from mmdet.models.dense_heads import SSDHead

    if '__getattr__' not in vars(SSDHead):
        SSDHead.__getattr__ = _no_loss
