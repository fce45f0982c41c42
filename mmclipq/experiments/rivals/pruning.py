"""Channels of the backbone pruned by their batch-norm scales ([28] in the paper), then int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ...apis import build_detector, load_float_checkpoint
from .onnxruntime import OnnxRuntime
from .parts import Parts

RATIO = 0.1
"""Share of the channels that go. The paper's row has 2.5 % less bytes than plain int8."""


class Pruning(OnnxRuntime):
    """Prunes with ``torch-pruning``, fine-tunes, then ONNX Runtime's static quantization."""

    packages = {**OnnxRuntime.packages, 'torch_pruning': 'torch-pruning'}
    trains = True

    def __init__(self) -> None:
        super().__init__(dynamic=False)

    def prepare(self, detector: nn.Module, cfg: Config, start: Path) -> None:
        import torch_pruning as tp

        load_float_checkpoint(detector, start)
        parts = Parts.of(detector.eval())
        backbone = {id(module) for module in detector.get_submodule('backbone').modules()}
        kept = [
            module
            for module in detector.modules()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and id(module) not in backbone
        ]
        pruner = tp.pruner.BNScalePruner(
            _Everything(detector, parts.head),
            parts.image,
            importance=tp.importance.BNScaleImportance(),
            pruning_ratio=RATIO,
            ignored_layers=kept,
        )
        pruner.step()

    def detector(self, cfg: Config, checkpoint: Path) -> Any:
        detector = build_detector(cfg.model, random=True)
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)['state_dict']
        resize(detector, state)
        detector.load_state_dict(state)
        return detector.eval()


class _Everything(nn.Module):
    """The dense part with all that the backbone computes, whether anything reads it or not."""

    def __init__(self, detector: Any, head: str | None) -> None:
        super().__init__()
        self.detector, self.head = detector, head

    def forward(self, image: Tensor) -> Any:
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


def resize(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give convolutions and batch norms the channels that they have in ``state``, in place."""
    for name, module in model.named_modules():
        weight = state.get(f'{name}.weight')
        if weight is None or weight.shape == module.weight.shape:
            continue
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels > 1
            module.out_channels = len(weight)
            module.groups = len(weight) if depthwise else module.groups
            module.in_channels = weight.shape[1] * module.groups
            module.weight.data = torch.empty_like(weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(weight)
            for part in ('weight', 'bias', 'running_mean', 'running_var'):
                getattr(module, part).data = torch.empty_like(weight)
