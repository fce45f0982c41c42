"""The kinds of nodes that an ``Int8Graph`` is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .norms import Affine, GroupNorm, LayerNorm, Normalize
from .products import Conv, ConvTranspose, Linear, Product
from .types import Node, Ref


@dataclass(frozen=True)
class Input(Node):
    """A tensor from outside: float32, or codes of another graph's tensor of the same type."""


@dataclass(frozen=True)
class Quantize(Node):
    """Float32 values to codes: ``saturate(round_half_even(x / step) + offset)``."""

    x: str


@dataclass(frozen=True)
class Dequantize(Node):
    """Codes to the float32 values they stand for."""

    x: str


@dataclass(frozen=True)
class Requantize(Node):
    """Codes of one range to codes of another, rounded half to even and saturated."""

    x: str


@dataclass(frozen=True)
class Add(Node):
    """Sum of two code tensors' values in float32, activation, rounded to codes."""

    x: str
    other: str
    activation: str = 'identity'
    slope: float = 0.0


@dataclass(frozen=True)
class Concat(Node):
    """Codes of several tensors of this node's type, side by side along the channels."""

    tensors: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.tensors


@dataclass(frozen=True)
class MaxPool(Node):
    """Largest code of each window; the type is that of ``x``."""

    x: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False


@dataclass(frozen=True)
class Activate(Node):
    """Activation of codes that no sum precedes, as codes or float32; 256 inputs, so a table."""

    x: str
    activation: str
    slope: float = 0.0


@dataclass(frozen=True)
class Mul(Node):
    """Product of two code tensors, whose axes broadcast as PyTorch's do, with activation.

    ``v = x * other`` of the float32 values, which is exact; then the activation; then codes. It is
    the gate of squeeze-and-excitation: ``(N, C, H, W)`` times ``(N, C, 1, 1)``.
    """

    x: str
    other: str
    activation: str = 'identity'
    slope: float = 0.0


@dataclass(frozen=True)
class AvgPool(Node):
    """Average of windows of codes: exact sum, ``v = float32(acc) * float32(1 / count)``, codes.

    Attributes:
        kernel: Rows and columns, or None for the whole image, which gives ``(N, C, 1, 1)``.
        count_padding: Whether a window's count includes padding; else only its real pixels count.
            Rows and columns beyond the padding, where ``ceil_mode`` reaches, never do.
    """

    x: str
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_padding: bool = True


@dataclass(frozen=True)
class Upsample(Node):
    """Nearest neighbour, by a factor or to the height and width of ``like``; type of ``x``."""

    x: str
    scale: tuple[float, float] | None = None
    like: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,) if self.like is None else (self.x, self.like)


@dataclass(frozen=True)
class Slice(Node):
    """Every ``step``-th row and column from ``start`` on, of ``(N, C, H, W)``; type of ``x``."""

    x: str
    start: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Flatten(Node):
    """Codes ``(N, C, H, W)`` as rows ``(N, C * H * W)``, channel by channel; type of ``x``."""

    x: str


@dataclass(frozen=True)
class RoIAlign(Node):
    """Average of bilinear samples in a region of one feature level, in float32, as codes.

    What MMDetection's ``SingleRoIExtractor`` computes with MMCV's ``RoIAlign``: a region
    ``(image, x1, y1, x2, y2)`` in pixels reads the level that suits its size. The order of the
    float32 operations is that of :mod:`mmclipq.backends.roi_align`.

    Attributes:
        levels: Code tensors ``(N, C, H, W)`` of one type, the finest first.
        rois: Float32 tensor ``(K, 5)``; the result has the shape ``(K, C, *output_size)``.
        output_size: Rows and columns of bins.
        scales: Pixels of each level for one pixel of the image.
        sampling_ratio: Samples along each side of a bin; 0 for as many as it has pixels.
        aligned: Whether pixel centres lie at half a pixel.
        finest_scale: Regions below twice this size in pixels read the finest level.
    """

    levels: tuple[str, ...]
    rois: str
    output_size: tuple[int, int]
    scales: tuple[float, ...]
    sampling_ratio: int = 0
    aligned: bool = True
    finest_scale: float = 56.0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.levels, self.rois)


@dataclass(frozen=True)
class FloatCall(Node):
    """A step that int8 does not cover, run by PyTorch in float32 (part of a float island).

    Attributes:
        kind: ``'function'``, ``'method'``, ``'module'`` or ``'parameter'``.
        target: Name of the function (a key of the table of allowed functions) or method, or the
            path of the module or parameter in the detector.
        args: Positional arguments, tensors as :class:`Ref`.
        kwargs: Keyword arguments as sorted pairs.
        reason: Why the step is not int8; empty for pure bookkeeping such as shapes.
    """

    kind: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    reason: str = ''

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(ref.name for ref in iter_refs((self.args, self.kwargs))))


Activated = Product | Add | Mul | Activate | Affine | Normalize
"""Nodes that end with an activation."""

NODE_KINDS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Input,
        Quantize,
        Dequantize,
        Requantize,
        Conv,
        ConvTranspose,
        Linear,
        Add,
        Activate,
        Mul,
        AvgPool,
        Affine,
        GroupNorm,
        LayerNorm,
        Concat,
        MaxPool,
        Upsample,
        Slice,
        Flatten,
        RoIAlign,
        FloatCall,
    )
}


def iter_refs(tree: Any) -> Iterator[Ref]:
    """Every :class:`Ref` in nested tuples, lists, dicts and slices."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from iter_refs(item)
    elif isinstance(tree, Mapping):
        yield from iter_refs(list(tree.values()))
    elif isinstance(tree, slice):
        yield from iter_refs((tree.start, tree.stop, tree.step))


def map_refs(tree: Any, function: Any) -> Any:
    """``tree`` with every :class:`Ref` replaced by ``function(ref)``."""
    if isinstance(tree, Ref):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_refs(item, function) for item in tree)
    if isinstance(tree, Mapping):
        return {key: map_refs(item, function) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(map_refs(item, function) for item in (tree.start, tree.stop, tree.step)))
    return tree
