"""Whole channels of least batch-norm scale pruned until a detector has fewer operations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from tqdm import tqdm

from ..errors import ClipQError, cannot_write
from ..graph.writing import write_atomically
from ..lowering.capture import capture
from ..lowering.plan import PRODUCTS, make_plan
from ..models.narrow import widths_of
from ..prepare import prepare_model, restore_model
from .detectors import build_detector, load_float_checkpoint

EXAMPLE_SIDE = 128
_MOST = 0.9
"""Largest share of a layer's channels that goes."""
_STEPS = 90


@dataclass(frozen=True)
class PruneReport:
    """What pruning left.

    Attributes:
        config, checkpoint: The files.
        before, after: Multiplications and additions of the dense part on an image of 128x128.
        weights: Parameters before and after.
        layers: How many layers have fewer channels.
    """

    config: Path
    checkpoint: Path
    before: float
    after: float
    weights: tuple[int, int]
    layers: int

    def __str__(self) -> str:
        return (
            f'{self.config}: {1 - self.after / self.before:.1%} of the operations and '
            f'{1 - self.weights[1] / self.weights[0]:.1%} of the weights pruned, in {self.layers} '
            f'layers; fine-tune it from {self.checkpoint}'
        )


class Everything(nn.Module):
    """The dense part with all that the backbone computes, whether anything reads it or not."""

    def __init__(self, detector: Any, head: str | None) -> None:
        super().__init__()
        self.detector, self.head = detector, head

    def forward(self, image: Tensor) -> list[Tensor]:
        found: list[Any] = []
        stages = self.detector.backbone.children()
        handles = [s.register_forward_hook(lambda *call: found.append(call[2])) for s in stages]
        try:
            features = self.detector.extract_feat(image)
        finally:
            for handle in handles:
                handle.remove()
        outputs = getattr(self.detector, self.head)(features) if self.head else ()
        return [y for y in tree_flatten((features, outputs, found))[0] if isinstance(y, Tensor)]


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ClipQError(
            'found no package torch_pruning, wanted it to prune channels; pip install torch-pruning'
        ) from error
    return torch_pruning


def _normed(detector: nn.Module, image: Tensor) -> tuple[set[nn.Module], str | None]:
    """Layers of the dense part that a batch norm follows, and the name of the dense head."""
    prepare_model(detector)
    try:
        traced = capture(detector, image)
        plan = make_plan(traced.module)
        normed = {
            traced.module.get_submodule(unit.target)
            for unit in plan.units
            if unit.kind in PRODUCTS and unit.norm is not None
        }
    finally:
        restore_model(detector)
    return normed, traced.head


def prune_channels(detector: nn.Module, share: float, round_to: int = 16) -> tuple[float, float]:
    """Prune the channels of least batch-norm scale from a detector's dense part, in place.

    What channels are tied by sums, concatenations and depthwise convolutions goes together (Fang
    et al. 2023, DepGraph, arXiv:2301.12900). Layers without a batch norm keep their outputs.

    Args:
        detector: A built detector with its weights.
        share: Of the operations that go, at least.
        round_to: What numbers of channels are multiples of; kernels of CPUs work on 16 at a time.

    Returns:
        Multiplications and additions of the dense part before and after.

    Raises:
        ClipQError: if ``torch-pruning`` is not installed, the detector cannot be captured, or so
            many operations cannot go.
    """
    library = _library()
    detector.eval()
    image = torch.zeros(1, 3, EXAMPLE_SIDE, EXAMPLE_SIDE)
    normed, head = _normed(detector, image)
    kept = [
        module
        for module in detector.modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and module not in normed
    ]
    whole = Everything(detector, head)
    before, _ = library.utils.count_ops_and_params(whole, image)
    pruner = library.pruner.BNScalePruner(
        whole,
        image,
        importance=library.importance.BNScaleImportance(),
        global_pruning=True,
        pruning_ratio=_MOST,
        max_pruning_ratio=_MOST,
        iterative_steps=_STEPS,
        ignored_layers=kept,
        round_to=round_to,
    )
    after = before
    with tqdm(total=_STEPS, desc='pruning', unit='step', delay=2) as bar:
        for _ in range(_STEPS):
            if after <= (1 - share) * before:
                return float(before), float(after)
            pruner.step()
            after, _ = library.utils.count_ops_and_params(whole, image)
            bar.update()
    raise ClipQError(
        f'--operations: found {1 - after / before:.1%} of the operations in channels that can go, '
        f'wanted {share:.1%}; ask for less'
    )


def prune_checkpoint(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    share: float,
    round_to: int = 16,
) -> PruneReport:
    """Write ``pruned.py`` and ``pruned.pth`` into the folder ``out``, which train and convert on.

    Args:
        cfg: The detector's config, which may be pruned before.
        checkpoint: Float checkpoint of it.
        out: Folder to make.
        share, round_to: As for :func:`prune_channels`, whose errors are raised.
    """
    detector = build_detector(cfg.model)
    content = load_float_checkpoint(detector, checkpoint)
    count = sum(p.numel() for p in detector.parameters())
    before, after = prune_channels(detector, share, round_to)
    section = cfg.model.to_dict()
    if section['type'].rpartition('.')[2] == 'NarrowDetector':
        section = section['detector']
    state = detector.state_dict()
    widths = widths_of(build_detector(section), state)
    cfg = cfg.copy()
    cfg.model = {'type': 'mmclipq.NarrowDetector', 'detector': section, 'widths': widths}
    out = Path(out)
    config, path = out / 'pruned.py', out / 'pruned.pth'
    cfg.load_from = str(path.resolve())
    kept = {key: content[key] for key in ('meta', 'clipq') if key in content}
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_checkpoint({**kept, 'state_dict': state}, str(path))
        write_atomically(config, cfg.pretty_text.encode())
    except OSError as error:
        raise cannot_write(out, error) from error
    rest = sum(p.numel() for p in detector.parameters())
    return PruneReport(config, path, before, after, (count, rest), len(widths))
