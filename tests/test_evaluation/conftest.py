"""The files of a quantized detector."""

import pytest
import torch

from mmclipq.apis import save_int8


@pytest.fixture
def checkpoints(cfg, model, quantized, tmp_path):
    """A float checkpoint and the ``.clipq`` file made from it."""
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    save_int8(tmp_path / 'int8.clipq', model, quantized, cfg, {'classes': tuple('0123456789')})
    return tmp_path / 'float.pth', tmp_path / 'int8.clipq'
