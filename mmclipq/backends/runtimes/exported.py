"""What the backends share that run exported graphs in other runtimes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ClipQError
from ...exporters.onnx_file import graph_model
from ...exporters.packages import missing
from ...exporters.qdq import leaves_by_name
from ...exporters.targets import DEFAULT_TARGET
from ...graph import ir
from ..base import Backend


class ExportedBackend(Backend):
    """Runs a graph as a whole in another runtime; tensors inside are seen through :meth:`codes`.

    Codes may differ from the reference's by single steps: the runtime adds in its own order.

    Attributes:
        target: What the graph is exported for, see :mod:`mmclipq.exporters.targets`.
        package: The runtime's package.
    """

    target = DEFAULT_TARGET
    package: str

    @classmethod
    def unavailable(cls, device: str) -> str:
        if torch.device(device).type != 'cpu':
            return f'found device {device!r}, wanted cpu'
        return missing('onnx', cls.package)

    def __init__(
        self, graph: ir.Int8Graph, islands: nn.Module | None = None, device: str = 'cpu'
    ) -> None:
        super().__init__(graph, islands, device)
        self._model = graph_model(graph, islands, target=self.target)
        self._execute = self.compile(self._model)
        self._inputs = [node for node in graph.nodes if isinstance(node, ir.Input)]
        self._outputs = leaves_by_name(graph.outputs)
        self._observed: Any = None

    def _method(self, node: ir.Node) -> None:
        return None

    @abstractmethod
    def compile(self, model: Any) -> Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]:
        """A function from named inputs to the outputs of the ONNX ``model`` in order."""

    def _feed(self, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
        read = {item.name for item in self._model.graph.input}
        return {
            node.name: np.ascontiguousarray(self._read_input(node, x).numpy())
            for node, x in zip(self._inputs, inputs, strict=True)
            if node.name in read
        }

    @torch.no_grad()
    def run(self, *inputs: Tensor, observe: Callable[[ir.Node, Any], None] | None = None) -> Any:
        if observe is not None:
            raise ClipQError(
                f'backend {self.name!r}: found a run with an observer, wanted codes(): the runtime '
                'executes the graph as a whole'
            )
        results = self._execute(self._feed(inputs))
        leaves = iter(torch.from_numpy(np.array(value)) for value in results)
        return ir.map_refs(self.graph.outputs, lambda ref: next(leaves))

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        if self._observed is None:
            model = graph_model(self.graph, self.islands, target=self.target, all_codes=True)
            self._observed = self.compile(model)
        results = self._observed(self._feed(inputs))[len(self._outputs) :]
        names = [name for name, kind in self.types.items() if kind.is_codes]
        return {
            name: torch.from_numpy(np.array(value))
            for name, value in zip(names, results, strict=True)
        }


def _node(self: Backend, node: ir.Node, *tensors: Any) -> Any:
    raise NotImplementedError('an exported graph runs as a whole')


# The interface has one method per kind of node; a runtime has none of them.
for _kind in ir.NODE_KINDS.values():
    if _kind not in (ir.Input, ir.FloatCall):
        setattr(ExportedBackend, _kind.__name__.lower(), _node)
ExportedBackend.__abstractmethods__ = frozenset({'compile'})
