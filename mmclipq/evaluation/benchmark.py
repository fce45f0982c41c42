"""Times runs in turn, so that all of them meet the same machine, and tabulates them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..graph import ir
from ..ops.products import Product

_SIDE = 4096


@dataclass
class Timing:
    """Milliseconds of one run: median, least and largest of all rounds."""

    name: str
    median: float
    least: float
    largest: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def time_in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int) -> list[Timing]:
    """Time each of ``runs`` once per round, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in tqdm(range(rounds + 2), desc='rounds', unit='round'):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if index > 1:
                times[name].append((time.perf_counter() - start) * 1000)
    return [
        Timing(name, sorted(found)[len(found) // 2], min(found), max(found))
        for name, found in times.items()
    ]


def peak_run() -> tuple[Callable[[], Any], float]:
    """A large int8 matrix product, and its operations in units of 10^9.

    It stands for the speed that the processor reaches; another library may reach more.

    Raises:
        ClipQError: if the CPU operators cannot run here.
    """
    side = _SIDE
    node = ir.Linear('peak', ir.TensorType(0), 'x', 'w', 'e', 'm', 'b')
    weight = torch.randint(-128, 128, (side, side), dtype=torch.int8)
    one = torch.full((side,), 1e-6)
    product = Product(node, weight, one, one, x_signed=False)
    x = torch.randint(0, 256, (side // 2, side), dtype=torch.uint8)
    return lambda: product(x), 2 * side * side * (side // 2) / 1e9


def operations(graph: ir.Int8Graph, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Multiplications and additions of all products, in units of 10^9.

    Args:
        graph: The integer graph.
        shapes: Shape of each product's result.
    """
    total = 0
    for node in graph.products():
        total += 2 * torch.Size(shapes[node.name]).numel() * graph.constants[node.weight][0].numel()
    return total / 1e9


def table(timings: list[Timing], work: float, peak: float | None) -> str:
    """Markdown table; ratios are to the first row.

    Args:
        timings: One for each row.
        work: Operations of one run, in units of 10^9.
        peak: Operations per second of :func:`peak_run`, in units of 10^9, or None.
    """
    lines = [
        '| dense part | ms (min to max) | times faster | speed of a large int8 product |',
        '|---|---|---|---|',
    ]
    for t in timings:
        share = f'{work / t.median * 1000 / peak:.0%}' if peak else ''
        lines.append(
            f'| {t.name} | {t.median:.1f} ({t.least:.1f} to {t.largest:.1f}) '
            f'| {timings[0].median / t.median:.2f} | {share} |'
        )
    return '\n'.join(lines)
