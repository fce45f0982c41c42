"""How a conformance case runs nodes on a backend."""

import numpy as np
import torch
from oracle import values_of

from mmclipq.backends import build_backend
from mmclipq.graph import ir

S8, U8 = (True, 0), (False, 0)


def kind_of(signed_exponent_offset):
    """Type of ``(signed, exponent)`` or ``(signed, exponent, offset)``."""
    signed, exponent, *offset = signed_exponent_offset
    return ir.TensorType(exponent, signed, *offset)


class ConformanceBase:
    """Runs nodes on one backend and compares them with the oracle."""

    backend: str
    device = 'cpu'

    def build(self, graph):
        return build_backend(self.backend, graph, None, self.device)

    def execute(self, nodes, constants, codes):
        """Run ``nodes`` on input ``codes`` (numpy, by tensor type); returns codes and result.

        The codes enter as float32 values through Quantize nodes, which is exact.
        """
        graph_nodes, inputs = [], []
        for name, (kind, values) in codes.items():
            graph_nodes += [ir.Input(f'{name}.in', ir.FLOAT), ir.Quantize(name, kind, f'{name}.in')]
            inputs.append(torch.from_numpy(values_of(values, kind)))
        graph_nodes += nodes
        last = graph_nodes[-1]
        if last.type.is_codes:
            graph_nodes.append(ir.Dequantize('result', ir.FLOAT, last.name))
        outputs = {'result': ir.Ref(graph_nodes[-1].name)}
        graph = ir.Int8Graph(tuple(graph_nodes), outputs, constants)
        backend = self.build(graph)
        found = backend.codes(*inputs)
        for name, (kind, values) in codes.items():
            self.check_codes(found[name], values, kind)
        return found, backend.run(*inputs)['result'].cpu()

    def check_codes(self, found, expected, kind):
        assert found.dtype == (torch.int8 if kind.signed else torch.uint8)
        assert torch.equal(found.long(), torch.from_numpy(np.ascontiguousarray(expected)).long())

    def check(self, node, constants, codes, expected):
        """Result of ``node``: numpy codes, or float32 values for a float32 node."""
        found, result = self.execute([node], constants, codes)
        if not node.type.is_codes:
            assert result.dtype == torch.float32
            assert torch.equal(result, torch.from_numpy(np.ascontiguousarray(expected)))
            return
        self.check_codes(found[node.name], expected, node.type)
        values = values_of(expected, node.type)
        assert torch.equal(result, torch.from_numpy(np.ascontiguousarray(values)))

    def constants(self, w, m, b):
        return {
            'w': torch.from_numpy(w).to(torch.int8),
            'e': torch.zeros(len(w), dtype=torch.int32),
            'm': torch.from_numpy(m),
            'b': torch.from_numpy(b),
        }
