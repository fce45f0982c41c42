"""What stands around the integer graph: quick, or MMDetection's own code."""

from __future__ import annotations

import os

from torch import nn

from ..graph.types import TensorType
from ..ops.cpu.library import why_unavailable
from .heads import FastBoxHead, FastDenseHead, quicken_heads
from .images import FastPreprocessor, PixelCodes, takes_pixels
from .mixing import mix_in, unmix
from .places import ChosenPriors

SWITCH = 'MMCLIPQ_QUICK'
"""Environment variable; ``0`` leaves images and boxes to MMDetection."""


def use_quick_pipeline(
    detector: nn.Module, on: bool = True, entry: TensorType | None = None
) -> None:
    """Let compiled operators do what stands around a detector's network, or stop that.

    Images become codes by tables, heads look at places alone that may hold boxes, and suppression
    is compiled. Results are those of MMDetection's code, see :mod:`mmclipq.pipeline.images` and
    :mod:`mmclipq.pipeline.heads`; parts that do something of their own keep it. Where the compiled
    operators cannot run, or the environment says ``MMCLIPQ_QUICK=0``, nothing changes.

    Args:
        detector: A detector on the CPU, in place.
        on: Whether to; else its own classes come back.
        entry: Type of the codes that its network begins with; without it images stay float32. It
            is kept for later calls.
    """
    for module in detector.modules():
        unmix(module, FastDenseHead, FastBoxHead, FastPreprocessor)
        if isinstance(priors := vars(module).get('prior_generator'), ChosenPriors):
            vars(module)['prior_generator'] = priors.stock
    preprocessor = getattr(detector, 'data_preprocessor', None)
    if entry is not None and takes_pixels(preprocessor):
        vars(preprocessor)['pixel_codes'] = PixelCodes(preprocessor, entry)
    if not on or os.environ.get(SWITCH) == '0' or why_unavailable():
        return
    quicken_heads(detector)
    if isinstance(preprocessor, nn.Module) and 'pixel_codes' in vars(preprocessor):
        mix_in(preprocessor, FastPreprocessor, 'Fast')
