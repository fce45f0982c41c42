"""The backends in plain PyTorch on a GPU."""

import pytest
import torch
from conformance import BackendConformance

if not torch.cuda.is_available():
    pytest.skip('found no GPU', allow_module_level=True)
pytestmark = pytest.mark.gpu


class TestReferenceOnGpu(BackendConformance):
    backend = 'reference'
    device = 'cuda'


class TestIntMmOnGpu(BackendConformance):
    backend = 'int_mm'
    device = 'cuda'
