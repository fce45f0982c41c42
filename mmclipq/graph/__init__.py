"""The integer graph: capture, planning, lowering, and the graph itself."""

from .ir import GraphError, Int8Graph, TensorType

__all__ = ['GraphError', 'Int8Graph', 'TensorType']
