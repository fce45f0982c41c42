"""A small detector that finds something without having been trained."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmclipq.apis import build_detector


@pytest.fixture
def finder(load_config) -> tuple[Config, nn.Module]:
    """Its config, and itself with predictions far enough apart for boxes."""
    cfg = load_config('quickstart/yolov3_mobilenetv2_digits.py')
    torch.manual_seed(0)
    stock = build_detector(cfg.model, random=True).eval()
    with torch.no_grad():
        for conv in stock.bbox_head.convs_pred:
            conv.weight.mul_(20)
    return cfg, stock
