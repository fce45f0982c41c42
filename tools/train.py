#!/usr/bin/env python
"""MMDetection's own ``tools/train.py``, same flags, with mmclipq imported.

The import makes ``mmclipq::`` bases resolve and MMEngine's checkpoints load on a current PyTorch.
"""

import sys

import torch

from mmclipq.apis.mmdet_tools import one_sentence_errors, run_mmdet_tool

if __name__ == '__main__':
    # Fresh deep networks meet denormal numbers, on which a CPU is several times slower.
    torch.set_flush_denormal(True)
    with one_sentence_errors():
        run_mmdet_tool('train', sys.argv[1:])
