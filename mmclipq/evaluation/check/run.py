"""Looks at a float checkpoint and its calibration images before anything is quantized."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn
from tqdm import tqdm

from ..._compat import as_detector
from ...apis.calibration_data import config_batches, folder_batches, with_instances
from ...apis.quantize_checkpoint import DEFAULT_IMAGES, load_for_quantization
from ...lowering.capture import evaluating
from ..coco import MatchedBoxes, ground_truth
from ..interval import average_precision
from .images import judge, judge_colour
from .norms import (
    Misfit,
    NormRecorder,
    frozen_norms,
    misfit,
    own_statistics,
    recording,
    running,
    tracked_norms,
)
from .preprocessing import Preprocessing, alternatives, of_preprocessor, preprocessing
from .processor import describe_processor
from .seen import KEPT, PIXELS, Seen, look

MAX_IMAGES = 64
"""Images that are looked at, however many calibrate."""
LEAST_IMAGES = 4
"""Fewer images say nothing about statistics of batch norm."""
BATCHPIXELS = 8 * 416 * 416
"""Pixels of a batch whose own statistics are taken."""
# In nats, see docs/accuracy.md: what healthy detectors gave, and what planted faults.
CLEARLY_BETTER, LEAST_GAIN = 3.0, 0.01
STALE = 0.05
UNLIKE_FIRST, UNLIKE_MEDIAN = 0.5, 0.1
LEAST_AP = 0.01


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        findings: One sentence for each fault; empty if there is none.
        facts: What was measured, or could not be.
    """

    findings: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        count = len(self.findings)
        verdict = f'{count} finding{"s" if count > 1 else ""}' if count else 'nothing found'
        lines = [f'  {fact}' for fact in self.facts]
        return '\n'.join([f'check: {verdict}', *lines, *(f'! {text}' for text in self.findings)])


class _Enough(Exception):
    """Ends a forward pass behind the last layer of interest."""


class _Check:
    """Looks at one detector."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.norms = tracked_norms(model)
        self.report = CheckReport()

    @torch.no_grad()
    def first_norms(self, batches: Sequence[Any], names: Sequence[str]) -> float:
        """Mean misfit of the first norms' running statistics on these images."""
        recorder = NormRecorder()

        def watch(name: str, x: Tensor) -> None:
            recorder.add(name, x)
            if name == names[-1]:
                raise _Enough

        chosen = {name: self.norms[name] for name in names}
        with evaluating(self.model), recording(chosen, watch):
            for batch in batches:
                recorder.next_batch()
                try:
                    as_detector(self.model).test_step(copy.deepcopy(batch))
                except _Enough:
                    continue
        return float(np.mean([self._misfit(recorder, name).mean for name in recorder.names]))

    def _misfit(self, recorder: NormRecorder, name: str) -> Misfit:
        norm = self.norms[name]
        return misfit(recorder.statistics(name), running(norm), norm.eps)

    def preprocessing(self, seen: Seen) -> Preprocessing:
        """The preprocessing that the first batch norms were trained with, the config's or another.

        A better one than the config's is a finding.
        """
        given = of_preprocessor(as_detector(self.model).data_preprocessor)
        if not given.is_possible():
            self.report.findings.append(
                f'data_preprocessor: found {given.settings}, wanted standard deviations above 0'
            )
        names = [name for name in seen.norms.names if name != PIXELS][:1]
        if not names:
            self.report.facts.append(
                'normalization: not checked, the detector has no batch norm that could tell'
            )
            return given
        fits = {given: self.first_norms(seen.kept, names)}
        for other in alternatives(given):
            with preprocessing(as_detector(self.model).data_preprocessor, other):
                fits[other] = self.first_norms(seen.kept, names)
        best = min(fits, key=fits.__getitem__)
        was, now = fits[given], fits[best]
        if was - now < LEAST_GAIN or was < CLEARLY_BETTER * now:
            self.report.facts.append(
                f"normalization: the config's fits the first batch norm to {was:.3f} nats, no "
                'other one clearly better'
            )
            return given
        self.report.findings.append(
            f'data_preprocessor: found {given.settings}, but the checkpoint was trained with '
            f'{best.what}: {names[0]} is {was:.3f} nats away from its running statistics, and '
            f'{now:.3f} with {best.settings}'
        )
        return best

    @torch.no_grad()
    def stale(self, seen: Seen) -> None:
        """Name the batch norms whose running statistics are not those of their real inputs."""
        frozen = frozen_norms(self.model)
        recorder = NormRecorder()
        pixels = max(look.shape[0] * look.shape[1] for look in seen.looks)
        size = max(2, min(8, BATCHPIXELS // pixels))
        watching = recording(self.norms, recorder.add)
        with evaluating(self.model), watching, own_statistics(self.norms):
            for start in range(0, len(seen.kept) - size + 1, size):
                batch = seen.kept[start : start + size]
                together = {key: [b[key][0] for b in batch] for key in batch[0]}
                recorder.next_batch()
                as_detector(self.model).test_step(copy.deepcopy(together))
        checked = [name for name in recorder.names if name not in frozen]
        if not checked:
            why = 'training leaves them as they are' if frozen else 'the detector has none'
            self.report.facts.append(f'batch norm: statistics not checked, {why}')
            return
        found = {name: self._misfit(recorder, name) for name in checked}
        stale = {name: fit for name, fit in found.items() if not fit.median <= STALE}
        if stale:
            name, fit = next(iter(stale.items()))
            more = ', '.join(list(stale)[1:3]) + (' and so on' if len(stale) > 3 else '')
            self.report.findings.append(
                f'batch norm: {len(stale)} of {len(checked)} hold running statistics that do not '
                f'fit what they get, first {name} (mean off by {fit.shift:.2f} standard '
                f'deviations, variance by a factor of {fit.ratio:.2f}; medians over channels)'
                + (f', then {more}' if more else '')
                + '; re-estimate them on training images'
            )
            return
        worst = max(found, key=lambda name: found[name].median)
        self.report.facts.append(
            f'batch norm: the running statistics of {len(checked)} layers fit, the worst '
            f'{worst} to {found[worst].median:.3f} nats'
        )

    @staticmethod
    def accuracy(seen: Seen) -> float | None:
        """AP on the images seen; None if they have no annotations."""
        if seen.infos is None or not any(info['instances'] for info in seen.infos):
            return None
        labels = [i['bbox_label'] for info in seen.infos for i in info['instances']]
        labels += [int(label) for item in seen.found for label in item.labels]
        classes = [str(index) for index in range(max(labels) + 1)]
        metric = MatchedBoxes(ground_truth(seen.infos, classes), sizes=False)
        metric.dataset_meta = {'classes': classes}
        metric.compute_metrics(seen.found)
        return average_precision(metric.result())['AP']

    def compare(self, seen: Seen, tested: Seen) -> bool:
        """Whether calibration and test images are alike, which the report says, too."""
        self.report.findings += judge_colour(seen.looks, tested.looks)
        apart = {
            name: misfit(
                tested.norms.statistics(name),
                seen.norms.statistics(name),
                self.norms[name].eps if name in self.norms else 1.0,
            ).mean
            for name in seen.norms.names
            if name in tested.norms.names
        }
        pixels, middle = apart[PIXELS], float(np.median(list(apart.values())))
        first = next((value for name, value in apart.items() if name != PIXELS), pixels)
        told = (
            f'pixels {pixels:.3f} nats apart, inputs of the first batch norm {first:.3f}, of the '
            f'median one {middle:.3f}'
        )
        if first > UNLIKE_FIRST or middle > UNLIKE_MEDIAN:
            self.report.findings.append(
                f'calibration images: found others than the test images ({told}), wanted images '
                'like those that the detector will see'
            )
            return False
        self.report.facts.append(f'calibration and test images are alike: {told}')
        return True

    def test_images(self, cfg: Config) -> Seen | None:
        """Some images of the test set; None if there are none."""
        if not cfg.get('test_dataloader'):
            return None
        try:
            return look(self.model, self.norms, _test_batches(cfg, KEPT))
        except (FileNotFoundError, NotADirectoryError) as error:
            self.report.facts.append(f'test images: found none to compare with ({error})')
            return None


def _test_batches(cfg: Config, count: int) -> Iterator[Any]:
    """Batches of one image each, spread over the test set."""
    dataset = Runner.build_dataloader(cfg.test_dataloader, seed=0).dataset
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    for index in tqdm(chosen, desc='test images', unit='image'):
        yield pseudo_collate([dataset[int(index)]])


def check_checkpoint(
    cfg: Config,
    checkpoint: str | os.PathLike,
    calib_images: int | None = None,
    calib_dir: str | os.PathLike | None = None,
    device: str = 'cpu',
) -> CheckReport:
    """Look for what is usually behind a bad int8 detector and is no matter of int8.

    Wrong preprocessing, stale statistics of batch norm, calibration images that cannot stand for
    others, and a float detector that finds nothing. At most :data:`MAX_IMAGES` calibration images
    are looked at, and as many test images.

    Args:
        cfg: The detector's config.
        checkpoint: Its float checkpoint.
        calib_images, calib_dir: As for quantizing.
        device: Where the detector runs.

    Raises:
        ClipQError: as quantizing does.
    """
    options = dict((cfg.get('clipq') or {}).get('int8') or {})
    count = options.get('calib_images', DEFAULT_IMAGES) if calib_images is None else calib_images
    cfg = with_instances(cfg)
    model, _ = load_for_quantization(cfg, checkpoint)
    check = _Check(model.to(device).eval())
    report = check.report
    report.facts.append(describe_processor())
    batches = (
        config_batches(cfg, count) if calib_dir is None else folder_batches(cfg, calib_dir, count)
    )
    seen = look(check.model, check.norms, islice(batches, MAX_IMAGES))
    report.findings += judge(seen.looks)
    if report.findings:
        report.facts.append('nothing else was checked, for want of images to check it with')
        return report
    given = of_preprocessor(as_detector(model).data_preprocessor)
    enough = len(seen.looks) >= LEAST_IMAGES
    if not enough:
        report.facts.append(
            f'normalization and batch norm: not checked, {len(seen.looks)} images are too few'
        )
    best = check.preprocessing(seen) if enough else given
    with preprocessing(as_detector(model).data_preprocessor, best):
        again = seen if best == given else look(check.model, check.norms, seen.kept)
        tested = check.test_images(cfg)
        alike = tested is None or check.compare(again, tested)
        if enough:
            check.stale(again if alike or tested is None else tested)
    ap = check.accuracy(seen)
    if ap is None:
        report.facts.append('AP of float: not measured, the images have no annotations')
        return report
    text = f'AP of float on {len(seen.looks)} calibration images: {ap:.3f}'
    if best != given:
        text += f'; on {len(again.looks)} with {best.what}: {check.accuracy(again):.3f}'
    elif ap < LEAST_AP:
        report.findings.append(
            f'{text}, wanted a detector that finds something; check checkpoint, classes and '
            'preprocessing'
        )
        return report
    report.facts.append(text)
    return report
