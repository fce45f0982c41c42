"""From a config, a float checkpoint and a ``.clipq`` file to an :class:`Analysis`."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mmengine.config import Config
from torch import nn
from tqdm import tqdm

from ..apis import build_detector, load_float_checkpoint, load_int8
from ..apis.int8_layout import read_parts
from ..apis.quantize_checkpoint import export_checkpoint
from ..evaluation.compare import weight_bytes
from ..evaluation.interval import ap_differences
from ..evaluation.tuning.state import Progress, fingerprint
from ..graph import ir
from ..graph.artifact import load_artifact
from ..graph.writing import temporary_folder
from ..prepare import clip_layers, prepare_model
from .changes import changes, most_changed
from .costs import executors, measure_costs
from .effects import agreement_lost, ap_alone, shown_from, suspects_first
from .images import AnalysedImages
from .int8_layers import Int8Layers
from .result import Analysis, LayerReport, Measured
from .signals import measure_signals
from .weights import weight_histogram

LEAST_WEIGHT_DB = 20.0
"""Signal to noise of the median layer's weights; int8 of the same ones has about 40."""


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        images: Test images, spread over the test set; None for all.
        sample: Of these, how many for what is measured layer by layer.
        suspects: Number of layers whose effect on AP is measured on all images.
        pictures: Number of images that are shown for lost boxes, and for gained ones.
        backend: Executes the int8 detector.
        device: Where everything runs.
    """

    images: int | None = None
    sample: int = 16
    suspects: int = 5
    pictures: int = 3
    backend: str = 'auto'
    device: str = 'cpu'


def float_detector(cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
    """The config's detector in float without any clipping, its layers ready for int8.

    Raises:
        ClipQError: if the checkpoint cannot be read or does not fit.
    """
    model = build_detector(cfg.model)
    load_float_checkpoint(model, checkpoint)
    prepare_model(model)
    for _, layer in clip_layers(model):  # a config may name clipped layers itself
        layer.input_exponent = layer.weight_exponent = None
    return model.eval()


def analyze(
    cfg: Config,
    checkpoint: str | os.PathLike,
    file: str | os.PathLike | None = None,
    options: Options = Options(),
    calibration: Mapping[str, Any] | None = None,
    progress: str | os.PathLike | None = None,
) -> Analysis:
    """Measure where an int8 detector's accuracy goes.

    Args:
        cfg: The detector's config, with a test set.
        checkpoint: Its float checkpoint.
        file: The ``.clipq`` file of this checkpoint; without one it is made as
            ``tools/quantize.py`` does by default, and not kept.
        options: How much is measured.
        calibration: Images to calibrate on where there is no file, as for
            :func:`mmclipq.apis.quantize_checkpoint.quantize_checkpoint`.
        progress: File that keeps what is measured layer by layer, so that the same call goes on
            with it after an interruption; whoever has the report removes it.

    Raises:
        ClipQError: for anything wrong with config, checkpoint, file or images.
    """
    images = AnalysedImages(cfg, options.images)
    model = float_detector(cfg, checkpoint).to(options.device)
    sources = {'config': str(cfg.filename), 'float checkpoint': str(checkpoint)}
    if file is not None:
        sources['int8 file'] = str(file)
        return _measure(model, images, Path(file), sources, options, progress)
    with temporary_folder() as folder:
        made = folder / 'default.clipq'
        given = {**(calibration or {}), 'device': options.device}
        export_checkpoint(cfg, checkpoint, made, **given)
        sources['int8 file'] = 'made of the checkpoint by the default of tools/quantize.py'
        return _measure(model, images, made, sources, options, progress)


def _progress(
    path: str | os.PathLike | None,
    model: nn.Module,
    images: AnalysedImages,
    file: Path,
    options: Options,
) -> Progress:
    """Results of an earlier call with the same detectors, images and options."""
    if path is None:
        return Progress()
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    measured = images.numbers, options.sample, options.device, images.config
    progress = Progress(path, fingerprint(model, content, *measured))
    if progress.resumed:
        tqdm.write(f'{path}: going on with {progress.resumed} results')
    return progress


def _measure(
    model: nn.Module,
    images: AnalysedImages,
    file: Path,
    sources: dict[str, str],
    options: Options,
    kept: str | os.PathLike | None,
) -> Analysis:
    artifact = load_artifact(file)
    parts = read_parts(artifact, file)
    layers = Int8Layers(model, parts)
    detector = load_int8(file, options.device, options.backend)
    first, second = images.detect(model, 'float'), images.detect(detector, 'int8')
    matches = images.match(first.detections)
    differences = ap_differences(matches, images.match(second.detections))

    sample = images.sample(options.sample)
    signals = measure_signals(layers, sample.batches(), detector.int8_backend)
    progress = _progress(kept, model, images, file, options)
    lost = agreement_lost(layers, sample, progress=progress)
    ranked = suspects_first(lost, {name: s.output.decibels for name, s in signals.items()})
    alone = ap_alone(layers, images, ranked[: options.suspects], matches, progress)
    costs = measure_costs(layers, detector, parts, images)
    # A loss of AP that the images can show counts more than what stands for it.
    worse = {name: ap.difference for name, ap in alone.items() if ap.verdict == 'worse'}
    ranked.sort(key=lambda name: worse.get(name, 0.0))

    least = shown_from(first.detections, sum(len(images.objects(i)) for i in images.ids))
    changed = changes(images, first.detections, second.detections, least)
    losing, gaining = most_changed(changed, options.pictures)
    reports = []
    for name in ranked:
        found, exponents = signals[name], layers.codes(name)[1]
        reports.append(
            LayerReport(
                name,
                describe(layers, name),
                tuple(dict.fromkeys(call.kind for call in layers.calls(name))),
                (int(exponents.min()), int(exponents.max())),
                found.clipped_inputs.share,
                found.clipped_weights.share,
                found.weight.decibels,
                found.output.decibels,
                found.read.decibels,
                lost[name],
                alone.get(name),
                costs[name],
            )
        )
    return Analysis(
        title=f'{type(model).__name__}, {Path(sources["config"]).stem}',
        sources=sources,
        images=len(images),
        sample=len(sample),
        backend=executors(detector, parts)[0].name,
        float_=Measured(weight_bytes(model), first.milliseconds),
        int8=Measured(file.stat().st_size, second.milliseconds),
        differences=differences,
        layers=reports,
        order=layers.names,
        weights=weight_histogram(layers.float_weight(name) for name in layers.names),
        lost=losing,
        gained=gaining,
        shown_from=least,
        totals={
            'objects': sum(len(c.objects.labels) for c in changed),
            'found': sum(int(c.first.right.sum()) for c in changed),
            'lost': sum(len(c.lost) for c in changed),
            'gained': sum(len(c.gained) for c in changed),
        },
        notes=notes(reports),
        left=dict(artifact.config.get('left', {})),
        classes=images.classes,
    )


def notes(reports: Sequence[LayerReport]) -> list[str]:
    """What the layers' figures together say about the file."""
    weights = [layer.weight_db for layer in reports if not math.isnan(layer.weight_db)]
    middle = median(weights) if weights else math.inf
    if middle >= LEAST_WEIGHT_DB:
        return []
    return [
        f"The file's weights are far from the checkpoint's, {middle:.1f} dB for the median layer: "
        'it was made of another checkpoint, or its ranges clip most weights.'
    ]


def describe(layers: Int8Layers, name: str) -> str:
    """A layer in a few words, such as ``3×3 conv /2, 32 → 64``."""
    layer, node = layers.layer(name), layers.calls(name)[0].node
    if isinstance(node, ir.Linear):
        return f'linear, {layer.in_features} → {layer.out_features}'
    rows, columns = layer.kernel_size
    kind = 'transposed conv' if isinstance(node, ir.ConvTranspose) else 'conv'
    if layer.groups == layer.in_channels > 1:
        kind = f'depthwise {kind}'
    elif layer.groups > 1:
        kind = f'{kind} in {layer.groups} groups'
    stride = f' /{layer.stride[0]}' if max(layer.stride) > 1 else ''
    return f'{rows}×{columns} {kind}{stride}, {layer.in_channels} → {layer.out_channels}'
