"""Traces modules with ``torch.fx`` beside a real execution, around what cannot be traced."""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, fx, nn

from ..graph import islands
from ..graph.ir import GraphError
from .activations import WHOLE
from .nodes import function_of, name_of
from .proxies import Value, asks_for_emptiness, is_asserted, known_result

REASON, BOOKKEEPING, SHAPE = 'reason', 'bookkeeping', 'shape'
"""Keys of a node's ``meta``: why a module is one step; whether a step is mere bookkeeping; the
shape of its result in the traced example."""

_VIEWS = {
    'view', 'reshape', 'permute', 'transpose', 'flatten', 'squeeze', 'unsqueeze', 'expand',
    'expand_as', 'split', 'chunk', 'unbind', 'narrow', 'select', 'unflatten', 'movedim',
    operator.getitem, torch.reshape, torch.permute, torch.transpose, torch.flatten, torch.squeeze,
    torch.unsqueeze, torch.split, torch.chunk, torch.unbind, torch.narrow, torch.movedim,
}  # fmt: skip
"""Calls whose result may lie in the memory of what they read."""

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
_PLAIN = (str, bool, int, float, type(None), type(...), torch.dtype)


class CaptureError(GraphError):
    """A detector, or a part of it, whose computation cannot be written down as a graph."""


class Tracer(fx.Tracer):
    """Writes a module's computation down as an fx graph while executing it on example values.

    Where that fails inside a submodule (a condition on data or sizes, a function that no island
    may call, a loop over a tensor), the smallest submodule around becomes one step of the graph,
    with the reason in the node's ``meta``. Example values decide nothing but structure: numbers
    of axes and levels, types, and whether there is anything at all.

    Args:
        names: Names of the inputs.
        examples: Their values. Without them nothing is executed, inputs are named after the
            root's arguments, and every condition and loop fails.
        whole: Path of the submodule that must not become one step; None for the root.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        examples: Sequence[Any] | None = None,
        whole: str | None = None,
    ) -> None:
        super().__init__()
        self.names, self.examples, self.whole = names, examples, whole
        self.proxy_buffer_attributes = True
        self.values: dict[fx.Node, Any] = {}
        self.executing = False
        self._parameter_proxies: dict[str, fx.Proxy] = {}

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        if self.examples is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        inputs = [self.create_proxy('placeholder', name, (), {}) for name in self.names]
        return root_fn, [self.root, *inputs]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def value(self, proxy: fx.Proxy) -> Any:
        """Example value of a proxy."""
        return self.values.get(proxy.node)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        has_children = next(module.children(), None) is not None
        leaf = not has_children or isinstance(module, (BaseRoIExtractor, *WHOLE))
        return leaf or super().is_leaf_module(module, name)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self.executing:
            return attr_val
        self._parameter_proxies = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Size):
            a = tuple(a)
        if isinstance(a, Tensor) and not self._is_registered(a):
            raise CaptureError('a tensor made on the way, which belongs to no module')
        if not isinstance(a, (Tensor, tuple, list, dict, slice, *_PLAIN)) or hasattr(a, '_fields'):
            raise CaptureError(f'an argument of type {type(a).__name__}')
        return super().create_arg(a)

    def _is_registered(self, tensor: Tensor) -> bool:
        registered = (*self.root.parameters(), *self.root.buffers())
        return any(tensor is known for known in registered)

    def create_proxy(
        self, kind, target, args, kwargs, name=None, type_expr=None, proxy_factory_fn=None
    ):
        if kind == 'call_method' and isinstance(args[0], fx.Proxy):
            known = known_result(target, args[0], args[1:])
            if known is not None:
                return known
        if kind in ('call_function', 'call_method'):
            self._check_call(kind, target, args)
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr)
        if self.examples is None:
            return proxy
        value = self.values[proxy.node] = self._execute(proxy.node)
        proxy.node.meta[BOOKKEEPING] = not isinstance(value, Tensor) and kind != 'call_module'
        if isinstance(value, Tensor):
            proxy.node.meta[SHAPE] = tuple(value.shape)
            if target is not getattr:  # an attribute's node outlives its proxy
                # No later step can read it then: no more memory is held than where nothing traces.
                weakref.finalize(proxy, self.values.pop, proxy.node, None)
        return self._unpacked(proxy, value)

    def _check_call(self, kind: str, target: Any, args: Sequence[Any]) -> None:
        if target is getattr:
            if args[1] not in islands.SHAPE_ATTRIBUTES:
                raise CaptureError(f'a read of attribute {args[1]!r}')
        elif kind == 'call_function' and target not in islands.FUNCTION_NAMES:
            raise CaptureError(f'a call of {getattr(target, "__name__", target)}')
        elif kind == 'call_method' and target not in islands.METHODS:
            raise CaptureError(f'a call of method {target!r}')

    def _execute(self, node: fx.Node) -> Any:
        args, kwargs = (plain(tree, self.values) for tree in (node.args, node.kwargs))
        before, self.executing = self.executing, True
        try:
            with torch.no_grad():
                if node.op == 'placeholder':
                    assert self.examples is not None
                    return self.examples[len(self.values)]
                if node.op == 'call_function':
                    return function_of(node)(*args, **kwargs)
                if node.op == 'call_method':
                    return getattr(args[0], name_of(node))(*args[1:], **kwargs)
                if node.op == 'call_module':
                    return self.root.get_submodule(name_of(node))(*args, **kwargs)
                owner, _, leaf = name_of(node).rpartition('.')
                return getattr(self.root.get_submodule(owner), leaf)
        finally:
            self.executing = before

    def _unpacked(self, proxy: fx.Proxy, value: Any) -> Any:
        """Containers as Python's own, so that loops over them and their length are known."""
        if value is None or isinstance(value, str):
            return value
        if type(value) in (tuple, list):
            return type(value)(self._item(proxy, index) for index in range(len(value)))
        if type(value) is dict:
            return {key: self._item(proxy, key) for key in value}
        return proxy

    def _item(self, proxy: fx.Proxy, key: Any) -> Any:
        item = self.create_proxy('call_function', operator.getitem, (proxy, key), {})
        if isinstance(item, fx.Proxy):
            item.node.meta[BOOKKEEPING] = True
        return item

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        indices = range(self.length(obj))
        return iter(
            [self.create_proxy('call_function', operator.getitem, (obj, i), {}) for i in indices]
        )

    def length(self, obj: fx.Proxy) -> int:
        """Number of items, if that is structure and no size of a tensor."""
        value = self.value(obj)
        if isinstance(value, tuple):  # the shape of a tensor, or what torch.max returns
            return len(value)
        raise CaptureError('a loop over a tensor')

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.value(obj)
        if asks_for_emptiness(obj.node) or is_asserted(sys._getframe(2)):
            return bool(value)
        raise CaptureError('a condition on data or sizes')

    def call_module(self, module, forward, args, kwargs):
        if self.executing:
            return forward(*args, **kwargs)
        path = self.path_of_module(module)
        if self.is_leaf_module(module, path):
            return self.create_proxy('call_module', path, args, kwargs)
        *_, last = self.graph.nodes
        try:
            # What the module does to its lists must not outlive a failure.
            return forward(*map(_copied, args), **{k: _copied(v) for k, v in kwargs.items()})
        except Exception as error:
            if path == self.whole:
                raise
            self._forget_after(last)
            result = self.create_proxy('call_module', path, args, kwargs)
            calls = (node for node in reversed(self.graph.nodes) if node.op == 'call_module')
            reason = f'{type(module).__name__} cannot be traced: {sentence(error)}'
            next(calls).meta[REASON] = reason
            return result

    def _forget_after(self, last: fx.Node) -> None:
        """Take back every node that was made after ``last``."""
        nodes = list(self.graph.nodes)
        forgotten = nodes[nodes.index(last) + 1 :]
        for node in reversed(forgotten):
            self.values.pop(node, None)
            self.graph.erase_node(node)
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node in forgotten:
                del self._parameter_proxies[name]


def sentence(error: Exception) -> str:
    """First line of an error's text."""
    return (str(error) or type(error).__name__).strip().split('\n')[0]


def _copied(tree: Any) -> Any:
    if type(tree) in (list, tuple):
        return type(tree)(map(_copied, tree))
    return {key: _copied(item) for key, item in tree.items()} if type(tree) is dict else tree


def plain(tree: Any, values: Mapping[fx.Node, Any] | None = None) -> Any:
    """``tree`` with values for nodes, in containers of Python's own instead of fx's."""
    if isinstance(tree, fx.Node):
        assert values is not None
        return values[tree]
    if isinstance(tree, list):
        return [plain(item, values) for item in tree]
    if type(tree) is tuple:
        return tuple(plain(item, values) for item in tree)
    if isinstance(tree, dict):
        return {key: plain(item, values) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(plain(item, values) for item in (tree.start, tree.stop, tree.step)))
    return tree


def _changes_in_place(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a step changes its first argument."""
    if node.op == 'call_method':
        method = name_of(node)
        return method.endswith('_') and not method.endswith('__')
    if node.op == 'call_function':
        return node.target in _IN_PLACE or bool(node.kwargs.get('inplace'))
    return node.op == 'call_module' and bool(
        getattr(module.get_submodule(name_of(node)), 'inplace', False)
    )


def _read_results(module: fx.GraphModule) -> None:
    """Let whoever reads a tensor after a change in place read the result of the change.

    The integer graph has no memory to change: each of its tensors is defined once.

    Raises:
        CaptureError: if an input is changed, or a view of a tensor that is read afterwards.
    """
    order = {node: index for index, node in enumerate(module.graph.nodes)}

    def later_users(node: fx.Node, change: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if order[user] > order[change]]

    for node in module.graph.nodes:
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or not _changes_in_place(node, module):
            continue
        if node.meta.get(BOOKKEEPING):  # a number, which no step can change
            continue
        shown = changed
        while shown.target in _VIEWS and isinstance(shown.args[0], fx.Node):
            shown = shown.args[0]
            if later_users(shown, node):
                raise CaptureError(f'{node.name}: found a view changed in place whose tensor is '
                                   'read afterwards, wanted a change of the tensor')  # fmt: skip
        if shown.op == 'placeholder':
            raise CaptureError(f'{node.name}: found a change in place of the input {shown.name!r}, '
                               'wanted one of a tensor made inside')  # fmt: skip
        for user in later_users(changed, node):
            user.replace_input_with(changed, node)
    module.recompile()


class Watched:
    """Stands before a module's forward: ``watch`` is called with the forward and its arguments."""

    def __init__(self, stock: Callable[..., Any], watch: Callable[..., Any]) -> None:
        self.stock, self.watch = stock, watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch(self.stock, *args, **kwargs)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode again afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def trace(
    part: nn.Module, names: Sequence[str], examples: Sequence[Any], whole: str | None = None
) -> fx.GraphModule:
    """``part`` as an fx graph module; its submodules keep their paths.

    Args:
        part: What to trace; ``forward`` takes the inputs by position.
        names: Names of the inputs.
        examples: Their values: tensors, which are not changed, or numbers.
        whole: Path of the submodule that must not become one step, if there is one.

    Raises:
        CaptureError: naming the module, if the part's own forward cannot be traced.
    """
    examples = [value.clone() if isinstance(value, Tensor) else value for value in examples]
    try:
        with evaluating(part):
            graph = Tracer(names, examples, whole).trace(part)
    except Exception as error:
        module = part.get_submodule(whole or '')
        raise CaptureError(
            f'{whole or "detector"} ({type(module).__name__}): found a step that cannot be traced '
            f'({sentence(error)}), wanted one whose course does not depend on data'
        ) from error
    traced = fx.GraphModule(part, graph)
    _read_results(traced)
    return traced
