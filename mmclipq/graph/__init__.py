"""The integer graph and its file: the one contract between making one and running one."""

from .ir import GraphError, Int8Graph, TensorType

__all__ = ['GraphError', 'Int8Graph', 'TensorType']
