"""Small networks traced like a detector's dense part, and stock detectors of mmdet."""

import pytest
import torch
from mmengine.hub import get_config
from torch import fx, nn

from mmclipq.apis import build_detector
from mmclipq.lowering.part import lower
from mmclipq.lowering.plan import make_plan
from mmclipq.lowering.tracer import Tracer
from mmclipq.prepare import find_weight_ranges, prepare_model


def _randomise(module):
    """Batch norm statistics that differ per channel, as after training."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.running_var, 0.3, 3)
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
        elif type(layer).__name__ == 'L2Norm':  # SSD's, made of uninitialised memory
            nn.init.constant_(layer.weight, 20)
    return module


@pytest.fixture
def randomise():
    return _randomise


@pytest.fixture
def trace():
    """Prepares a module's layers and traces it the way detectors are traced."""

    def run(module: nn.Module, **options) -> fx.GraphModule:
        prepare_model(module.eval(), **options)
        find_weight_ranges(module)
        return fx.GraphModule(module, Tracer().trace(module)).eval()

    return run


@pytest.fixture
def plan(trace):
    return lambda module, **options: make_plan(trace(module, **options))


@pytest.fixture
def lowered(trace):
    """The integer graph of a small module, calibrated on ``images``."""

    def run(module, images, method='mse', non_negative_input=False, **options):
        return lower(trace(module, **options), images, method, non_negative_input)

    return run


@pytest.fixture
def stock():
    """Builds a stock detector of mmdet with random weights."""

    def build(name: str, **overrides) -> nn.Module:
        torch.manual_seed(0)
        cfg = get_config(f'mmdet::{name}')
        cfg.merge_from_dict(overrides)
        return build_detector(cfg.model, random=True)

    return build
