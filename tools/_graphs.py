"""Random integer graphs over every kind of node, for comparing backends and as seeds of fuzzing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmclipq.graph import ir
from mmclipq.graph.shapes import Shape, result_shape

SIDES = (1, 2, 3, 5, 7, 8, 12, 17, 24)
CHANNELS = (1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 32, 33)
SCALED = ('identity', 'relu', 'relu6', 'leaky_relu')
_ISLANDS = (
    ('function', 'torch.abs', ()),
    ('function', 'torch.clamp', (-1.5, 2.0)),
    ('function', 'operator.mul', (0.5,)),
    ('method', 'neg', ()),
    ('method', 'contiguous', ()),
)
"""Float steps whose results are exact, so that codes behind them can be compared."""


class Islands(nn.Module):
    """Stands in for the detector: a module and a parameter that float steps name."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = nn.ReLU6()
        self.factor = nn.Parameter(torch.tensor([0.5]))


@dataclass
class RandomGraph:
    """A graph with inputs that it can read.

    Attributes:
        graph: The graph; every tensor of codes is looked at through ``Backend.codes``.
        inputs: One tensor for each input node.
        islands: What its float steps name.
    """

    graph: ir.Int8Graph
    inputs: list[Tensor]
    islands: nn.Module


@dataclass
class _Maker:
    """Adds nodes one after the other, each reading what is there."""

    rng: random.Random
    prefix: str
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, ir.TensorType] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.rng.getrandbits(32))

    def name(self, kind: str) -> str:
        return f'{self.prefix}{kind.lower()}{len(self.nodes)}'

    def add(self, node: ir.Node, shape: Shape | None = None) -> str:
        """Append ``node`` if it fits what it reads."""
        shape = shape or result_shape(node, self.shapes, self.constants)
        if len(shape) and min(shape) > 0 and torch.Size(shape).numel() <= 1 << 17:
            self.nodes.append(node)
            self.shapes[node.name], self.types[node.name] = shape, node.type
        return node.name

    def type(self) -> ir.TensorType:
        exponent = self.rng.randint(-3, 4)
        signed = self.rng.random() < 0.5
        offset = 0 if signed or self.rng.random() < 0.4 else self.rng.choice(ir.OFFSETS)
        return ir.TensorType(exponent, signed, offset)

    def result(self) -> ir.TensorType:
        return ir.FLOAT if self.rng.random() < 0.1 else self.type()

    def codes(self, axes: int | None = 4) -> str:
        """Name of some codes with so many axes; KeyError if there are none."""
        found = [n for n, s in self.shapes.items() if self.types[n].is_codes
                 and (axes is None or len(s) == axes)]  # fmt: skip
        if not found:
            raise KeyError(axes)
        return self.rng.choice(found[-6:])

    def activation(self) -> dict[str, Any]:
        name = self.rng.choice(ir.ACTIVATIONS)
        slope = self.rng.choice((0.0, 0.1, 0.25)) if name == 'leaky_relu' else float(name == 'elu')
        return {'activation': name, 'slope': slope}

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low

    def pair(self, *choices: int) -> tuple[int, int]:
        return self.rng.choice(choices), self.rng.choice(choices)

    def layer(self, name: str, x: str, shape: Shape, out: ir.TensorType) -> dict[str, Any]:
        """Constants of a product whose results fill the range of ``out``."""
        keys = {key: f'{name}.{key}' for key in ('weight', 'exponents', 'multiplier', 'bias')}
        channels, fan_in = shape[0], torch.Size(shape[1:]).numel()
        weight = torch.randint(-128, 128, shape, generator=self.generator, dtype=torch.int8)
        spread = 64.0 * 64.0 * fan_in**0.5
        top = 2.0 ** (1 if out.exponent is None else out.exponent)
        self.constants[keys['weight']] = weight
        self.constants[keys['exponents']] = torch.zeros(channels, dtype=torch.int32)
        self.constants[keys['multiplier']] = self.uniform(channels, 0.2, 1.0) * (top / spread)
        self.constants[keys['bias']] = self.uniform(channels, -0.3, 0.6) * top
        return keys

    def residual(self, shape: Shape) -> dict[str, Any]:
        found = [n for n, s in self.shapes.items() if s == shape and self.types[n].is_codes]
        if not found or self.rng.random() < 0.5:
            return {}
        return {'residual': self.rng.choice(found), 'residual_last': self.rng.random() < 0.5}

    def conv(self) -> None:
        x, out, name = self.codes(), self.result(), self.name('conv')
        channels = self.shapes[x][1]
        groups = self.rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        outputs = (
            groups * self.rng.choice((1, 2, 3, 8)) if groups > 1 else self.rng.choice(CHANNELS)
        )
        kernel = self.pair(1, 1, 2, 3, 3, 5)
        keys = self.layer(name, x, (outputs, channels // groups, *kernel), out)
        fields: dict[str, Any] = dict(
            stride=self.pair(1, 1, 2), dilation=self.pair(1, 1, 2), groups=groups
        )
        if self.rng.random() < 0.15:
            fields['covering'] = True
        else:
            fields['padding'] = self.pair(0, 1, 2)
        node = ir.Conv(name, out, x, **keys, **self.activation(), **fields)
        shape = result_shape(node, self.shapes, self.constants)
        added = self.residual(shape)
        self.add(ir.Conv(name, out, x, **keys, **self.activation(), **fields, **added))

    def conv_transpose(self) -> None:
        x, out, name = self.codes(), self.result(), self.name('transpose')
        channels = self.shapes[x][1]
        keys = self.layer(name, x, (self.rng.choice(CHANNELS[:6]), channels, *self.pair(2, 3)), out)
        self.add(
            ir.ConvTranspose(
                name, out, x, **keys, **self.activation(), stride=(2, 2), padding=self.pair(0, 1),
                output_padding=self.pair(0, 1),
            )
        )  # fmt: skip

    def linear(self) -> None:
        flat = any(len(shape) == 2 and self.types[n].is_codes for n, shape in self.shapes.items())
        x = self.codes(2) if flat else self.flatten()
        out, name = self.result(), self.name('linear')
        keys = self.layer(name, x, (self.rng.choice(CHANNELS), self.shapes[x][-1]), out)
        self.add(ir.Linear(name, out, x, **keys, **self.activation()))

    def flatten(self) -> str:
        x = self.codes()
        return self.add(ir.Flatten(self.name('flatten'), self.types[x], x))

    def alone(self) -> None:
        x = self.codes(None)
        if self.rng.random() < 0.5:
            self.add(ir.Requantize(self.name('requantize'), self.type(), x))
        else:
            name = self.name('activate')
            self.add(ir.Activate(name, self.result(), x, **self.activation()))

    def pairwise(self) -> None:
        x = self.codes(None)
        same = [n for n, s in self.shapes.items() if s == self.shapes[x] and self.types[n].is_codes]
        other, kind = self.rng.choice(same), self.rng.choice((ir.Add, ir.Mul))
        if kind is ir.Mul and len(self.shapes[x]) == 4 and self.rng.random() < 0.5:
            other = self.add(ir.AvgPool(self.name('gate'), self.type(), x))
        self.add(kind(self.name(kind.__name__), self.type(), x, other, **self.activation()))

    def pool(self) -> None:
        x, ceil = self.codes(), self.rng.random() < 0.5
        kernel, stride = self.pair(2, 3), self.pair(1, 2)
        padding = self.pair(0, 1)
        if self.rng.random() < 0.5:
            name = self.name('maxpool')
            self.add(ir.MaxPool(name, self.types[x], x, kernel, stride, padding, (1, 1), ceil))
            return
        window = None if self.rng.random() < 0.3 else kernel
        fields = (window, stride, padding, ceil, self.rng.random() < 0.5)
        self.add(ir.AvgPool(self.name('avgpool'), self.type(), x, *fields))

    def concat(self) -> None:
        x = self.codes()
        shape, kind = self.shapes[x], self.types[x]
        fit = [n for n, s in self.shapes.items() if len(s) == 4 and self.types[n].is_codes
               and (s[0], *s[2:]) == (shape[0], *shape[2:])]  # fmt: skip
        parts = []
        for name in self.rng.choices(fit, k=self.rng.randint(1, 3)):
            if self.types[name] != kind:
                name = self.add(ir.Requantize(self.name('requantize'), kind, name))
            parts.append(name)
        self.add(ir.Concat(self.name('concat'), kind, tuple(parts)))

    def resize(self) -> None:
        x, which = self.codes(), self.rng.randrange(3)
        kind, name = self.types[x], self.name('resize')
        if which == 0:
            self.add(ir.Upsample(name, kind, x, scale=(2.0, float(self.rng.choice((1, 2, 3))))))
        elif which == 1:
            self.add(ir.Upsample(name, kind, x, like=self.codes()))
        else:
            self.add(ir.Slice(name, kind, x, self.pair(0, 1), self.pair(1, 2)))

    def norm(self) -> None:
        kind = self.rng.choice((ir.Affine, ir.GroupNorm, ir.LayerNorm))
        x = self.codes(4 if kind is ir.GroupNorm else None)
        shape, name = self.shapes[x], self.name(kind.__name__)
        channels = shape[1] if len(shape) == 4 else shape[-1]
        first, bias = f'{name}.factor', f'{name}.bias'
        small = 2.0 ** self.types[x].step_exponent if kind is ir.Affine else 1.0
        self.constants[first] = self.uniform(channels, -1, 1) * small
        self.constants[bias] = self.uniform(channels, -1, 1)
        fields: dict[str, Any] = self.activation()
        if kind is ir.GroupNorm:
            fields['groups'] = self.rng.choice([g for g in (1, 2, channels) if channels % g == 0])
        self.add(kind(name, self.result(), x, first, bias, **fields))

    def island(self) -> None:
        x = self.codes()
        values = self.add(ir.Dequantize(self.name('dequantize'), ir.FLOAT, x))
        kind, target, args = self.rng.choice(_ISLANDS)
        if self.rng.random() < 0.3:
            kind, target, args = 'module', 'limit', ()
        name = self.name('float')
        step = ir.FloatCall(name, ir.FLOAT, kind, target, (ir.Ref(values), *args), (), 'a test')
        made = self.add(step, self.shapes[x])
        if self.rng.random() < 0.3:
            half = self.add(ir.FloatCall(self.name('half'), ir.FLOAT, 'parameter', 'factor'), (1,))
            both = ir.Ref(made), ir.Ref(half)
            name = self.name('scaled')
            step = ir.FloatCall(name, ir.FLOAT, 'function', 'torch.mul', both, (), 'a test')
            made = self.add(step, self.shapes[x])
        self.add(ir.Quantize(self.name('quantize'), self.type(), made))

    def regions(self) -> None:
        x = self.codes()
        images, _, height, width = self.shapes[x]
        name = self.name('rois')
        count = self.rng.randint(1, 9)
        rois = self.uniform(count * 5, -2, 4.0 * max(height, width)).view(count, 5)
        rois[:, 0] = torch.randint(0, images, (count,), generator=self.generator)
        self.inputs.append(rois)
        self.add(ir.Input(name, ir.FLOAT), (count, 5))
        fields = (self.rng.choice((0, 2)), self.rng.random() < 0.5, 8.0)
        levels: tuple[str, ...] = (x,)
        scales: tuple[float, ...] = (0.25,)
        if self.rng.random() < 0.5:
            kind = self.types[x]
            levels = (x, self.add(ir.Slice(self.name('level'), kind, x, (0, 0), (2, 2))))
            scales = (0.25, 0.125)
        self.add(ir.RoIAlign(self.name('align'), self.type(), levels, name, self.pair(1, 2, 3),
                             scales, *fields))  # fmt: skip

    def step(self, whole: bool) -> None:
        """One more node of a random kind, or a few."""
        makers: list[Callable[[], Any]] = [
            self.conv, self.conv, self.conv, self.conv_transpose, self.linear, self.flatten,
            self.alone, self.pairwise, self.pool, self.concat, self.resize, self.norm, self.island,
            self.island,
        ]  # fmt: skip
        if whole:
            makers.append(self.regions)
        try:
            self.rng.choice(makers)()
        except (ir.GraphError, KeyError):  # too small for it, or left out for its size
            return


def random_graph(seed: int, count: int = 12) -> RandomGraph:
    """A graph of about ``count`` nodes; the same seed gives the same one."""
    rng = random.Random(seed)
    maker = _Maker(rng, '')
    shape = (rng.randint(1, 2), rng.choice(CHANNELS), rng.choice(SIDES[3:]), rng.choice(SIDES[3:]))
    maker.add(ir.Input('image', ir.FLOAT), shape)
    maker.inputs.append(torch.randn(shape, generator=maker.generator) * 3)
    maker.add(ir.Quantize('x', maker.type(), 'image'))
    while len(maker.nodes) < count:
        maker.step(whole=True)
    outputs = tuple(ir.Ref(name) for name in maker.shapes)
    read = {name for node in maker.nodes for name in node.inputs}
    outputs = tuple(ref for ref in outputs if ref.name not in read)
    graph = ir.Int8Graph(tuple(maker.nodes), outputs, maker.constants)
    return RandomGraph(graph, maker.inputs, Islands())


def with_random_nodes(graph: ir.Int8Graph, seed: int, count: int = 20) -> ir.Int8Graph:
    """``graph``, which reads one image ``(N, 3, H, W)``, with dead ends beside it."""
    maker = _Maker(random.Random(seed), 'extra.')
    image = graph.nodes[0].name
    maker.shapes[image], maker.types[image] = (1, 3, 64, 64), ir.FLOAT
    maker.add(ir.Quantize('extra.x', maker.type(), image))
    steps = 0
    while len(maker.nodes) < count and steps < 10 * count:
        steps += 1
        maker.step(whole=False)
    kept = [node for node in maker.nodes if not _is_named(node)]
    names = {image}
    nodes = []
    for node in kept:  # those that read what was left out go, too
        if names.issuperset(node.inputs):
            nodes.append(node)
            names.add(node.name)
    return ir.Int8Graph(
        (*graph.nodes, *nodes), graph.outputs, {**graph.constants, **maker.constants}
    )


def _is_named(node: ir.Node) -> bool:
    return isinstance(node, ir.FloatCall) and node.kind in ('module', 'parameter')
