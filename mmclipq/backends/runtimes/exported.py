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


def saturates() -> bool:
    """Whether int8 products are added in pairs of 16 bits here, as on x86 without VNNI."""
    known: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    if known.get('architecture') != 'x86_64':
        return False
    return not any(known.get(name) for name in ('avx512_vnni', 'avx_vnni', 'amx_int8'))


class ExportedBackend(Backend):
    """Runs a graph as a whole in another runtime; tensors inside are seen through :meth:`codes`.

    Codes may differ from the reference's by single steps: the runtime adds in its own order.

    Attributes:
        target: What the graph is exported for, see :mod:`mmclipq.exporters.targets`.
    """

    target = DEFAULT_TARGET

    @classmethod
    def unavailable(cls, device: str) -> str:
        if torch.device(device).type != 'cpu':
            return f'found device {device!r}, wanted cpu'
        return missing(*cls.packages)

    def __init__(
        self, graph: ir.Int8Graph, islands: nn.Module | None = None, device: str = 'cpu'
    ) -> None:
        super().__init__(graph, islands, device)
        self._inputs = [node for node in graph.nodes if isinstance(node, ir.Input)]
        self._outputs = leaves_by_name(graph.outputs)
        model = graph_model(graph, islands, target=self.target)
        self._ranks = {
            item.name: len(item.type.tensor_type.shape.dim) for item in model.graph.input
        }
        self._compiled = {(tuple(self._ranks.values()), False): self.compile(model)}

    def _method(self, node: ir.Node) -> None:
        return None

    @abstractmethod
    def compile(self, model: Any) -> Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]:
        """A function from named inputs to the outputs of the ONNX ``model`` in order."""

    def _results(self, inputs: Sequence[Tensor], all_codes: bool) -> Sequence[np.ndarray]:
        """Outputs of the model, which is compiled once for each number of axes of its inputs."""
        feed = {
            node.name: np.ascontiguousarray(self._read_input(node, x).numpy())
            for node, x in zip(self._inputs, inputs, strict=True)
            if node.name in self._ranks
        }
        ranks = {name: x.ndim for name, x in feed.items()}
        key = tuple(ranks.values()), all_codes
        if key not in self._compiled:
            model = graph_model(
                self.graph, self.islands, target=self.target, all_codes=all_codes, ranks=ranks
            )
            self._compiled[key] = self.compile(model)
        return self._compiled[key](feed)

    @torch.no_grad()
    def run(self, *inputs: Tensor, observe: Callable[[ir.Node, Any], None] | None = None) -> Any:
        if observe is not None:
            raise ClipQError(
                f'backend {self.name!r}: found a run with an observer, wanted codes(): the runtime '
                'executes the graph as a whole'
            )
        results = self._results(inputs, all_codes=False)
        leaves = iter(torch.from_numpy(np.array(value)) for value in results)
        return ir.map_refs(self.graph.outputs, lambda ref: next(leaves))

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        results = self._results(inputs, all_codes=True)[len(self._outputs) :]
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
