"""One pass of a detector over images, and what it leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..._compat import as_detector
from ...lowering.capture import evaluating
from ..coco import Detections
from .images import Look
from .norms import NormRecorder, recording

KEPT = 16
"""Images that are kept and looked at again, prepared in other ways."""
PIXELS = 'pixels'
"""Name under which an image itself is recorded."""


@dataclass
class Seen:
    """What a pass over images left.

    Attributes:
        looks: Of each image.
        kept: The first batches.
        norms: Inputs of the batch norms, and the pixels under :data:`PIXELS`.
        found: Detections in each image.
        infos: Ground truth as a data set gives it; None if the images have none.
    """

    looks: list[Look] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    norms: NormRecorder = field(default_factory=NormRecorder)
    found: list[Detections] = field(default_factory=list)
    infos: list[dict[str, Any]] | None = field(default_factory=list)


@torch.no_grad()
def look(model: nn.Module, norms: Mapping[str, _BatchNorm], batches: Iterable[Any]) -> Seen:
    """Predict on the images of ``batches``, one image each.

    Args:
        model: The float detector.
        norms: Its batch norms to record.
        batches: What a dataloader gives.
    """
    seen = Seen()
    with evaluating(model), recording(norms, seen.norms.add):
        for batch in batches:
            pixels = batch['inputs'][0]
            seen.looks.append(Look.at(pixels))
            seen.norms.next_batch()
            seen.norms.add(PIXELS, pixels[None].float())
            (sample,) = as_detector(model).test_step(copy.deepcopy(batch))
            if len(seen.kept) < KEPT:
                seen.kept.append(batch)
            # Data sets may share identifiers.
            found = Detections.of(sample)._replace(image=len(seen.found))
            seen.found.append(found)
            instances = sample.get('instances')
            if instances is None or seen.infos is None:
                seen.infos = None
                continue
            height, width = sample.ori_shape[:2]
            info = {'img_id': found.image, 'height': height, 'width': width}
            seen.infos.append({**info, 'instances': instances})
    return seen
