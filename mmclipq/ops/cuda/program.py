"""Programs whose steps are launched on a stream of a GPU."""

from __future__ import annotations

from typing import Any

import torch

from ..program import Program
from .library import CudaLibrary


def current_stream(device: torch.device) -> int:
    """Handle of the stream that torch launches on; 0 for tensors on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == 'cuda' else 0


class CudaProgram(Program):
    """Launched on the current stream; returns before the steps have run.

    Args:
        externals: How many buffers each run brings.
        library: The operators.
        device: Where the buffers are; the caller makes it the current device.
    """

    def __init__(self, externals: int, library: CudaLibrary, device: torch.device) -> None:
        super().__init__(externals)
        self._library, self._device = library, device

    def _call(self, start: Any, count: int, buffers: Any, error: Any) -> int:
        return self._library.run(start, count, buffers, current_stream(self._device), error)
