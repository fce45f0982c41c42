"""What an analysis found, ready to be drawn or written as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..evaluation.interval import Difference
from ..graph.ir import TensorType
from .changes import ImageChange
from .costs import Cost
from .weights import WeightHistogram


@dataclass(frozen=True)
class LayerReport:
    """One int8 layer.

    Attributes:
        name: Its name in the detector.
        form: Its kind, kernel and channels in words.
        reads: Codes that it reads: those of each call, without repetitions.
        weight_exponents: Least and largest range exponent of its output channels.
        clipped_inputs, clipped_weights: Shares that saturate, from 0 to 1.
        weight_db, output_db: Signal to noise of weights, and of results on float inputs.
        read_db: Signal to noise of what it reads in the running int8 detector; NaN outside of
            backbone, neck and dense head.
        agreement_lost: What it alone in int8 changes in the float detector's detections.
        ap: AP with it alone in int8 against float; None if that was not measured.
        cost: Bytes and milliseconds.
    """

    name: str
    form: str
    reads: tuple[TensorType, ...]
    weight_exponents: tuple[int, int]
    clipped_inputs: float
    clipped_weights: float
    weight_db: float
    output_db: float
    read_db: float
    agreement_lost: float
    ap: Difference | None
    cost: Cost


@dataclass(frozen=True)
class Measured:
    """How one detector did as a whole; bytes of its file or parameters, time per image."""

    size: int
    milliseconds: float


@dataclass(frozen=True)
class Analysis:
    """A detector in float and in int8.

    Attributes:
        title: What is analysed.
        sources: What was read, by what it is.
        images, sample: Number of images for AP, and for what is measured layer by layer.
        backend: Executed the int8 detector.
        float_, int8: The detectors as a whole.
        differences: AP overall, by threshold, size and class.
        layers: The one that costs most accuracy first.
        order: Names of the layers in the order of execution.
        weights: Distribution of the float weights of all int8 layers.
        lost, gained: Images in which int8 lost or gained most boxes.
        shown_from: Score from which on boxes are counted and drawn.
        totals: Objects in all images, and how many float found, int8 lost and int8 gained.
        notes: What else a reader must know, a sentence each.
        left: Name and reason of what stays in float.
        classes: Names of the classes.
    """

    title: str
    sources: Mapping[str, str]
    images: int
    sample: int
    backend: str
    float_: Measured
    int8: Measured
    differences: Sequence[Difference]
    layers: Sequence[LayerReport]
    order: Sequence[str]
    weights: WeightHistogram
    lost: Sequence[ImageChange]
    gained: Sequence[ImageChange]
    shown_from: float
    totals: Mapping[str, int]
    notes: Sequence[str] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()

    @property
    def suspects(self) -> list[LayerReport]:
        """The layers whose effect on AP was measured."""
        return [layer for layer in self.layers if layer.ap is not None]

    @property
    def culprits(self) -> list[LayerReport]:
        """The suspects that lose AP by themselves, as far as the images can show it."""
        return [layer for layer in self.suspects if layer.ap and layer.ap.verdict == 'worse']

    def as_dict(self) -> dict[str, Any]:
        """All figures without the boxes, for JSON; what is not finite is None."""
        fields = {
            'title': self.title,
            'sources': dict(self.sources),
            'images': self.images,
            'sample': self.sample,
            'backend': self.backend,
            'float': asdict(self.float_),
            'int8': asdict(self.int8),
            'differences': [difference.as_dict() for difference in self.differences],
            'layers': [
                {
                    **asdict(layer),
                    'reads': list(map(str, layer.reads)),
                    'ap': None if layer.ap is None else layer.ap.as_dict(),
                }
                for layer in self.layers
            ],
            'order': list(self.order),
            'weights': asdict(self.weights),
            'shown_from': self.shown_from,
            'totals': dict(self.totals),
            'changed_images': [
                {'path': change.path, 'lost': len(change.lost), 'gained': len(change.gained)}
                for change in (*self.lost, *self.gained)
            ],
            'notes': list(self.notes),
            'left': dict(self.left),
        }
        return _plain(fields)


def _plain(tree: Any) -> Any:
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, (list, tuple)) else tree
