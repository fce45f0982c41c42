"""From a config and a checkpoint to a ``.clipq`` file, as the tools and the hook do it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..calibration.options import CalibrationOptions
from ..errors import ClipQError
from ..prepare import load_ranges_state, prepare_model, prepare_options
from .calibration_data import config_batches, folder_batches
from .detectors import build_detector, load_float_checkpoint
from .fit_size import fit_size
from .int8_file import int8_size, save_int8
from .mmdet_tools import check_out
from .quantize_model import Quantized, calibrate, quantize

DEFAULT_IMAGES = 64


@dataclass
class ExportSummary:
    """What an export wrote.

    Attributes:
        path: The file.
        size: Its size in bytes.
        float_size: Bytes of the float32 weights it replaces.
        quantized: Number of int8 layers.
        left: Name and reason of what stays in float.
    """

    path: Path
    size: int
    float_size: int
    quantized: int
    left: Mapping[str, str]

    @property
    def ratio(self) -> float:
        return self.size / self.float_size

    def __str__(self) -> str:
        lines = [
            f'{self.path}: {self.size / 2**20:.2f} MiB, {self.ratio:.2%} of '
            f'{self.float_size / 2**20:.2f} MiB float32, {self.quantized} layers int8, '
            f'{len(self.left)} steps left in float'
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if names[3:] else '')
            lines.append(f'  float: {shown}: {reason}')
        return '\n'.join(lines)


def load_for_quantization(
    cfg: Config, checkpoint: str | os.PathLike
) -> tuple[nn.Module, dict[str, Any]]:
    """The config's detector with a float checkpoint and, if it has any, its clip ranges.

    Raises:
        ClipQError: if the checkpoint cannot be read or does not fit.
    """
    if 'model' not in cfg:
        raise ClipQError(f'{cfg.filename}: found no model section, wanted a detector config')
    model = build_detector(cfg.model)
    content = load_float_checkpoint(model, checkpoint)
    prepare_model(model, **prepare_options(cfg.get('clipq')))
    if 'clipq' in content:
        load_ranges_state(model, content['clipq'])
    return model.eval(), content


def calibration_batches(
    cfg: Config,
    calib_images: int | None = None,
    calib_dir: str | os.PathLike | None = None,
    calib_seed: int | None = None,
    held: int = 0,
) -> Iterator[Any]:
    """Batches of one calibration image each; with ``held`` of so many other images instead.

    Args:
        cfg: The detector's config; its ``clipq.int8`` section holds the defaults.
        calib_images: Number of calibration images.
        calib_dir: Folder to take them from; by default the config's training set.
        calib_seed: Of their draw.
        held: Number of images that do not calibrate.

    Raises:
        ClipQError: for anything wrong with the images.
    """
    section = dict((cfg.get('clipq') or {}).get('int8') or {})
    count = section.get('calib_images', DEFAULT_IMAGES) if calib_images is None else calib_images
    seed = section.get('calib_seed', 0) if calib_seed is None else calib_seed
    if calib_dir is not None:
        return folder_batches(cfg, calib_dir, count, held, seed)
    return config_batches(cfg, count, held, seed)


def calibration_options(cfg: Config, **changes: Any) -> CalibrationOptions:
    """Those of a config's ``clipq.int8`` section, in which ``changes`` win unless None."""
    return CalibrationOptions.of((cfg.get('clipq') or {}).get('int8'), **changes)


def float_bytes(model: nn.Module) -> int:
    """Bytes of the float weights of a detector."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def dataset_meta(content: Mapping[str, Any]) -> dict[str, Any]:
    """Class names and colours of a checkpoint's content."""
    return dict(content.get('meta', {}).get('dataset_meta') or {})


def quantize_checkpoint(
    cfg: Config,
    checkpoint: str | os.PathLike,
    calib_images: int | None = None,
    calib_dir: str | os.PathLike | None = None,
    device: str = 'cpu',
    calib_seed: int | None = None,
    size: float | None = None,
    compress: str = 'fast',
    **changes: Any,
) -> tuple[nn.Module, Quantized, dict[str, Any]]:
    """Calibrated integer graph of a checkpoint, with the detector and the checkpoint's meta data.

    Args:
        cfg, calib_images, calib_dir, calib_seed: As for :func:`calibration_batches`.
        checkpoint: Float checkpoint that MMEngine wrote.
        device: Where calibration runs.
        size: Wanted bytes of the file as a share of the float32 weights; None for codes with the
            least error.
        compress: How that file is packed.
        **changes: Options of :class:`mmclipq.calibration.options.CalibrationOptions` that win over
            the config's unless None.

    Raises:
        ClipQError: for anything wrong with config, checkpoint or images.
    """
    options = calibration_options(cfg, **changes)
    # What is wrong with the images is said before the checkpoint is loaded.
    batches = calibration_batches(cfg, calib_images, calib_dir, calib_seed)
    model, content = load_for_quantization(cfg, checkpoint)
    model.to(device)
    meta = dataset_meta(content)
    if size is None:
        return model, quantize(model, batches, cfg.get('clipq'), **asdict(options)), meta
    session = calibrate(model, batches, cfg.get('clipq'))
    session.measure(options)
    fit_size(
        session,
        options,
        size * float_bytes(model),
        lambda quantized: int8_size(model, quantized, cfg, meta, compress),
    )
    return model, session.finish(options), meta


def export_checkpoint(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    compress: str = 'fast',
    **options: Any,
) -> ExportSummary:
    """Write ``out`` from a checkpoint.

    ``compress`` is that of :func:`mmclipq.apis.int8_file.save_int8`, ``options`` are those of
    :func:`quantize_checkpoint`.
    """
    out = Path(out)
    check_out(out, '.clipq')
    model, quantized, meta = quantize_checkpoint(cfg, checkpoint, compress=compress, **options)
    return write_int8(out, model, quantized, cfg, meta, compress)


def write_int8(
    out: Path,
    model: nn.Module,
    quantized: Quantized,
    cfg: Config,
    meta: Mapping[str, Any],
    compress: str = 'fast',
) -> ExportSummary:
    """Write the ``.clipq`` file of what :func:`quantize_checkpoint` returns."""
    model.cpu()
    size = save_int8(out, model, quantized, cfg, meta, compress)
    float_size = float_bytes(model)
    layers = {node.weight for graph in quantized.graphs for node in graph.products()}
    return ExportSummary(out, size, float_size, len(layers), quantized.left)
