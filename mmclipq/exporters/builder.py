"""A small writer of ONNX graphs: operators as calls that return tensor names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ClipQError
from .packages import require

MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 17, 20, 17
MIN_IR, MAX_IR, DEFAULT_IR = 8, 10, 8


class ExportError(ClipQError):
    """A graph that the wanted format cannot express."""


def check_versions(opset: int, ir_version: int) -> None:
    """Return if files can be written for the opset and IR version.

    Raises:
        ExportError: naming what was found and what is possible.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ExportError(f'found opset {opset}, wanted {MIN_OPSET} to {MAX_OPSET}')
    if not MIN_IR <= ir_version <= MAX_IR:
        raise ExportError(f'found IR version {ir_version}, wanted {MIN_IR} to {MAX_IR}')
    needed = {17: 8, 18: 8, 19: 9, 20: 9}[opset]
    if ir_version < needed:
        raise ExportError(
            f'found IR version {ir_version} with opset {opset}, wanted at least {needed}; give '
            f'--ir-version {needed} or a lower --opset'
        )


class OnnxBuilder:
    """Collects nodes and initializers.

    Args:
        opset: Version of the operator set.
        ir_version: Version of the file format.

    Attributes:
        ranks: Number of axes of the inputs, and of whatever :meth:`rank_of` found.
    """

    def __init__(self, opset: int = DEFAULT_OPSET, ir_version: int = DEFAULT_IR) -> None:
        check_versions(opset, ir_version)
        self.onnx = require('onnx')
        self.opset, self.ir_version = opset, ir_version
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._names: set[str] = set()
        self._shared: dict[Any, str] = {}
        self.ranks: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """``name``, with a number where it is taken."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f'{name}_{count}'
        self._names.add(candidate)
        return candidate

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add an operator with one output and return the output's name."""
        return self.ops(kind, 1, *inputs, name=name, **attributes)[0]

    def ops(
        self, kind: str, count: int, *inputs: str, name: str | None = None, **attributes: Any
    ) -> list[str]:
        """Add an operator with ``count`` outputs and return their names."""
        base = name or kind.lower()
        outputs = [self.unique(base) for _ in range(count)]
        self.nodes.append(
            self.onnx.helper.make_node(kind, list(inputs), outputs, name=outputs[0], **attributes)
        )
        return outputs

    def constant(self, value: Any, dtype: Any = None, name: str = 'constant') -> str:
        """An initializer; equal ones are stored once, under the first one's name."""
        array = np.ascontiguousarray(value, dtype=dtype).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._shared:
            self._shared[key] = self.unique(name)
            self.initializers.append(self.onnx.numpy_helper.from_array(array, self._shared[key]))
        return self._shared[key]

    def floats(self, *values: float) -> str:
        """A float32 initializer: a scalar for one value, else a vector."""
        return self.constant(values[0] if len(values) == 1 else values, np.float32)

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(values, np.int64)

    def _value(self, name: str, dtype: Any, shape: Sequence[Any] | None) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def input(self, name: str, dtype: Any, shape: Sequence[Any]) -> str:
        """Declare an input; strings in ``shape`` are dynamic sizes."""
        self._names.add(name)
        self.ranks[name] = len(shape)
        self.inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, tensor: str, name: str, dtype: Any, shape: Sequence[Any] | None) -> str:
        """Declare ``tensor`` an output called ``name``."""
        if tensor != name:
            name = self.op('Identity', tensor, name=name)
        self.outputs.append(self._value(name, dtype, shape))
        return name

    def rank_of(self, tensor: str) -> int:
        """Number of axes of ``tensor``, which is an input or any operator's output.

        Raises:
            ExportError: if ONNX's shape inference does not find it, naming the tensor.
        """
        if tensor not in self.ranks:
            helper, sizes = self.onnx.helper, {value.name: value for value in self.initializers}
            # Shapes and indices are short; inference needs no weights.
            long = {n for n, v in sizes.items() if np.prod(v.dims, dtype=np.int64) > 64}
            given = [helper.make_tensor_value_info(n, sizes[n].data_type, sizes[n].dims)
                     for n in sizes if n in long]  # fmt: skip
            short = [value for name, value in sizes.items() if name not in long]
            graph = helper.make_graph(self.nodes, 'ranks', [*self.inputs, *given], [], short)
            opset = [helper.make_opsetid('', self.opset)]
            model = helper.make_model(graph, opset_imports=opset)
            found = self.onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
            self.ranks |= {
                value.name: len(value.type.tensor_type.shape.dim)
                for value in found
                if value.type.tensor_type.HasField('shape')
            }
        if tensor not in self.ranks:
            raise ExportError(
                f'{tensor}: found a tensor of unknown shape, wanted to know its number of axes'
            )
        return self.ranks[tensor]

    def model(self, metadata: dict[str, str]) -> Any:
        """The checked ``ModelProto`` with ``metadata``."""
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes, 'mmclipq', self.inputs, self.outputs, self.initializers
        )
        model = helper.make_model(
            graph,
            producer_name='mmclipq',
            ir_version=self.ir_version,
            opset_imports=[helper.make_opsetid('', self.opset)],
        )
        helper.set_model_props(model, metadata)
        # Outputs are declared without shapes: inference knows their ranks.
        inferred = self.onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        for declared, found in zip(model.graph.output, inferred, strict=True):
            declared.CopyFrom(found)
        self.onnx.checker.check_model(model, full_check=True)
        return model
