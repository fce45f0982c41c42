"""Decides, before any number is known, which node of a traced graph becomes what.

A *unit* is one node of the integer graph to be: a convolution with the batch norm, activation and
residual that fuse into its epilogue, or a step that stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..layers import ClipMixin
from . import patterns
from .activations import NON_NEGATIVE
from .nodes import name_of
from .tracer import SHAPE

PRODUCTS = ('conv', 'conv_transpose', 'linear')
NORMS = ('affine', 'group_norm', 'layer_norm')
"""Units that read codes and may give codes or float32."""
ACTIVATED = ('add', 'mul', *NORMS)
"""Units that stand alone and into which an activation behind them fuses."""
SAME_TYPE = ('concat', 'flatten', 'max_pool', 'slice', 'upsample')
"""Units whose result has the codes of their operands, so that all share one range."""


@dataclass(eq=False)
class Unit:
    """One node of the integer graph to be.

    Attributes:
        kind: ``input``, ``conv``, ``conv_transpose``, ``linear``, ``add``, ``mul``,
            ``activation``, ``affine`` (a batch norm alone), ``group_norm``, ``layer_norm``,
            ``avg_pool``, ``concat``, ``max_pool``, ``upsample``, ``slice``, ``flatten``,
            ``roi_align`` or ``float``.
        node: The fx node that computes the unit's result (the last one fused).
        start: The first one; the same where nothing is fused.
        operands: Units read; for a product the input first, then the residual if there is one.
        beside: Unit read otherwise: whose size an upsampling takes, or the regions of RoIAlign.
        path: Layer path of a product, else the fx name.
        layer, norm: The clipped layer and the batch norm fused into it, or a norm alone.
        scale: Learned factor of the result, behind the norm.
        options: Fields of the graph's node; ``reason`` for a float step.
        non_negative: Whether no value can be below zero.
        wants_codes: Whether anything reads the result as codes.
        read_unclipped: Whether a float step or the outside reads its values.
    """

    kind: str
    node: fx.Node
    operands: list[Unit] = field(default_factory=list)
    beside: Unit | None = None
    path: str = ''
    layer: ClipMixin | None = None
    norm: nn.Module | None = None
    scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    non_negative: bool = False
    wants_codes: bool = False
    read_unclipped: bool = False

    def __post_init__(self) -> None:
        self.start = self.node

    @property
    def target(self) -> str:
        """Path of the layer that the first node calls."""
        return name_of(self.start)

    @property
    def clipped(self) -> ClipMixin:
        """The layer of a product."""
        assert self.layer is not None
        return self.layer


@dataclass
class Plan:
    """Units in execution order, and the unit of every fx node that has one.

    Attributes:
        levels: Features that leave as codes of one range, for the graphs that RoIAlign starts.
    """

    units: list[Unit]
    of_node: dict[fx.Node, Unit]
    output: fx.Node
    levels: list[Unit] = field(default_factory=list)

    def users(self) -> dict[Unit, list[Unit]]:
        """Units that read each unit's result as int8 codes."""
        users: dict[Unit, list[Unit]] = {unit: [] for unit in self.units}
        for unit in self.units:
            for operand in unit.operands:
                users[operand].append(unit)
        return users


def _of_one_shape(first: fx.Node, second: fx.Node) -> bool:
    """Whether two tensors had one shape where they were traced, or no shapes are known."""
    shapes = [node.meta.get(SHAPE) for node in (first, second)]
    return None in shapes or shapes[0] == shapes[1]


class _Planner:
    def __init__(
        self, module: fx.GraphModule, non_negative_input: bool, levels: int, left: Mapping[str, str]
    ) -> None:
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.ops = {node: patterns.read(node, self.modules) for node in module.graph.nodes}
        self.order = {node: index for index, node in enumerate(module.graph.nodes)}
        self.of_node: dict[fx.Node, Unit] = {}
        # What units read, until all units are known.
        self.reads: dict[Unit, list[fx.Node]] = {}
        self.reads_beside: dict[Unit, fx.Node] = {}
        self.names: dict[str, int] = {}
        self.covered: set[fx.Node] = set()
        self.non_negative_input = non_negative_input
        self.level_count = levels
        self.left = left

    def source(self, node: fx.Node) -> fx.Node:
        """``node`` itself, or what an identity (dropout in evaluation, say) passes on."""
        while self.ops[node].kind == 'identity' and node not in self.of_node:
            node = self.ops[node].operands[0]
        return node

    def unique(self, path: str) -> str:
        count = self.names[path] = self.names.get(path, 0) + 1
        return path if count == 1 else f'{path}#{count}'

    def only_user(self, node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        return user if user is not None and user.op != 'output' else None

    def product(self, node: fx.Node) -> Unit:
        """The unit that starts at a conv or linear, with the nodes after it that fuse."""
        op = self.ops[node]
        assert isinstance(op.module, ClipMixin)
        unit = Unit(op.kind, node, path=self.unique(name_of(node)), layer=op.module)
        unit.options = {'activation': 'identity', 'slope': 0.0, 'residual_last': False}
        residual: fx.Node | None = None
        while (user := self.only_user(unit.node)) is not None and user not in self.covered:
            after = self.ops[user]
            activated = unit.options['activation'] != 'identity'
            if after.kind == 'identity':
                pass
            elif after.kind == 'norm' and unit.norm is None and not activated and residual is None:
                if unit.scale != 1:
                    break
                unit.norm = after.module
            elif after.kind == 'scale' and not activated and residual is None:
                unit.scale *= dict(after.options)['factor']
            elif after.kind == 'activation' and not activated:
                unit.options.update(after.options)
            elif after.kind == 'add' and residual is None and op.kind == 'conv':
                others = [arg for arg in after.operands if arg is not unit.node]
                # A residual has the result's own shape: the epilogue does not broadcast.
                if len(others) != 1 or not _of_one_shape(unit.node, others[0]):
                    break
                residual = others[0]
                unit.options['residual_last'] = activated
            else:
                break
            self.covered.add(user)
            unit.node = user
            if unit.options['residual_last']:
                break
        self.reads[unit] = [op.operands[0]] + ([] if residual is None else [residual])
        return unit

    def stand_alone(self, node: fx.Node) -> Unit:
        """The unit of anything on codes that is no product."""
        op = self.ops[node]
        kind = 'affine' if op.kind == 'norm' else op.kind
        unit = Unit(kind, node, path=self.unique(node.name), norm=op.module)
        self.reads[unit] = list(op.operands)
        unit.options = dict(op.options)
        if op.kind == 'roi_align' or op.kind == 'upsample' and len(op.operands) == 2:
            self.reads_beside[unit] = self.reads[unit].pop()
        user = self.only_user(node)
        if kind in ACTIVATED and user is not None and self.ops[user].kind == 'activation':
            self.covered.add(user)
            unit.options |= dict(self.ops[user].options)
            unit.node = user
        return unit

    def run(self, graph: fx.Graph) -> Plan:
        """Units first, then what they read, once all are known."""
        units: list[Unit] = []
        output = next(node for node in graph.nodes if node.op == 'output')
        for node in graph.nodes:
            if node in self.covered or node.op == 'output' or self.ops[node].kind == 'identity':
                continue
            op = self.ops[node]
            if node.op == 'placeholder':
                unit = Unit('input', node, path=self.unique(node.name))
            elif op.kind in PRODUCTS:
                unit = self.product(node)
                if node.target in self.left:
                    units += self.left_in_float(unit)
                    continue
            elif op.kind == 'scale':
                unit = self.float_unit(node, f'{node.name} follows no convolution that it fuses to')
            elif op.kind == 'float':
                unit = self.float_unit(node, dict(op.options)['reason'])
            else:
                unit = self.stand_alone(node)
            units.append(unit)
        # A fused unit stands where its last node stood: all its operands are defined by then.
        units.sort(key=lambda unit: self.order[unit.node])
        self.of_node = {unit.node: unit for unit in units}
        for unit in units:
            unit.operands = [self.of_node[self.source(arg)] for arg in self.reads.get(unit, ())]
            if (beside := self.reads_beside.get(unit)) is not None:
                unit.beside = self.of_node[self.source(beside)]
        features = output.args[0]['features'][: self.level_count] if self.level_count else ()
        levels = [self.of_node[self.source(node)] for node in features]
        for unit in levels:
            unit.wants_codes = True
        self.mark(units)
        units = self.live(units, output)
        self.of_node = {unit.node: unit for unit in units}
        for unit in units:
            unit.read_unclipped = self.is_read_unclipped(unit)
        return Plan(units, self.of_node, output, levels)

    def float_unit(self, node: fx.Node, reason: str) -> Unit:
        return Unit('float', node, path=self.unique(node.name), options={'reason': reason})

    def left_in_float(self, unit: Unit) -> Iterator[Unit]:
        """A product as float steps, with all that would have fused, so nothing is rounded within.

        Its last step gives the tensor that the product would have given.
        """
        reason, node = self.left[unit.target], unit.start
        while True:
            if node is unit.start:
                yield Unit('float', node, path=unit.path, options={'reason': reason})
            elif self.ops[node].kind != 'identity' or node is unit.node:
                yield self.float_unit(node, reason)
            if node is unit.node:
                return
            node = next(iter(node.users))

    def mark(self, units: list[Unit]) -> None:
        """Find who wants codes, turn the rest into float steps, then find the signs."""
        for unit in reversed(list(units)):
            stays = unit.kind in ('input', 'float', *PRODUCTS, *NORMS)
            if not stays and not unit.wants_codes:
                self.make_float(unit, units)
            for operand in unit.operands:
                operand.wants_codes = True
        for unit in units:
            unit.non_negative = self.cannot_be_negative(unit)

    def live(self, units: list[Unit], output: fx.Node) -> list[Unit]:
        """``units`` without the steps that nothing reads any more, such as an upsampling's size."""
        needed: set[Unit] = set()
        waiting = [self.of_node[self.source(node)] for node in output.all_input_nodes]
        while waiting:
            unit = waiting.pop()
            if unit in needed:
                continue
            needed.add(unit)
            waiting += unit.operands + ([] if unit.beside is None else [unit.beside])
            if unit.kind == 'float':
                sources = (self.source(node) for node in unit.node.all_input_nodes)
                waiting += [self.of_node[node] for node in sources]
        return [unit for unit in units if unit in needed or unit.kind == 'input']

    def is_read_unclipped(self, unit: Unit) -> bool:
        """Whether a float step or the outside reads the values, which training does not clip."""
        waiting = list(unit.node.users)
        while waiting:
            user = waiting.pop()
            if user.op == 'output':
                return True
            if self.ops[user].kind == 'identity':
                waiting += user.users
            reader = self.of_node.get(user)
            if reader is not None and reader.kind == 'float' and reader.options['reason']:
                return True
        return False

    def make_float(self, unit: Unit, units: list[Unit]) -> None:
        reason = f'{unit.path} is read by float steps only'
        if unit.start is not unit.node:
            before = self.float_unit(unit.start, reason)
            units.insert(units.index(unit), before)
            self.of_node[unit.start] = before
        unit.kind, unit.options, unit.operands, unit.beside = 'float', {'reason': reason}, [], None

    def cannot_be_negative(self, unit: Unit) -> bool:
        if unit.kind == 'input':
            return self.non_negative_input
        if unit.kind == 'float':
            return patterns.is_non_negative(unit.node, self.modules)
        if unit.kind in ('avg_pool', 'roi_align', *SAME_TYPE):
            return all(operand.non_negative for operand in unit.operands)
        rectified = unit.options.get('activation') in NON_NEGATIVE
        if unit.kind in ('add', 'mul'):
            return rectified or all(operand.non_negative for operand in unit.operands)
        if len(unit.operands) == 2 and unit.options['residual_last']:
            return rectified and unit.operands[1].non_negative
        return rectified


def make_plan(
    module: fx.GraphModule,
    non_negative_input: bool = False,
    levels: int = 0,
    left: Mapping[str, str] | None = None,
) -> Plan:
    """Plan for a traced module whose layers are clipped (:func:`mmclipq.prepare_model`).

    Args:
        module: The traced module.
        non_negative_input: Whether its inputs cannot be negative.
        levels: How many of its features, from the first on, RoIAlign reads as codes.
        left: Layers that stay in float, by path, and why.
    """
    return _Planner(module, non_negative_input, levels, left or {}).run(module.graph)


def tied_groups(plan: Plan) -> Iterator[list[Unit]]:
    """Units whose codes must share one range and sign, in order of their first member."""
    leader: dict[Unit, Unit] = {unit: unit for unit in plan.units}

    def find(unit: Unit) -> Unit:
        while leader[unit] is not unit:
            unit = leader[unit]
        return unit

    def tie(units: list[Unit]) -> None:
        for unit in units[1:]:
            first, second = find(units[0]), find(unit)
            if first is not second:
                leader[second] = first

    for unit in plan.units:
        if unit.kind in SAME_TYPE:
            tie([*unit.operands, unit])
        elif unit.kind == 'roi_align':
            tie(unit.operands)
    tie(plan.levels)
    groups: dict[Unit, list[Unit]] = {}
    for unit in plan.units:
        if unit.wants_codes:
            groups.setdefault(find(unit), []).append(unit)
    yield from groups.values()
