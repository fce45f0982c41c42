"""Settings of the backends' tests."""

import pytest
import torch


@pytest.fixture(scope='module', autouse=True)
def _one_thread():
    """Tiny tensors: on a busy machine a second thread only waits to be scheduled."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
