"""What the fields of a traced node are where its kind tells; torch types them as anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, fx


def name_of(node: fx.Node) -> str:
    """Target of any step but a call of a function: the path of a module or parameter, or the name
    of a method."""
    assert isinstance(node.target, str)
    return node.target


def function_of(node: fx.Node) -> Callable[..., Any]:
    """Target of a call of a function."""
    assert callable(node.target)
    return node.target


def tensor(argument: Any) -> fx.Node:
    """What a step reads as a tensor: the node that gives it."""
    assert isinstance(argument, fx.Node)
    return argument


def input_of(execution: fx.Interpreter, node: fx.Node) -> Tensor:
    """Value of the first argument of a step that reads a tensor, while ``execution`` runs."""
    return cast(Tensor, execution.map_nodes_to_values(node.args[0], node))
