"""From an encoded image in memory to boxes: each stage timed, each runtime with all around it.

Runtimes that compute the dense part alone get MMDetection's own processing around it, and its box
heads in float; mmclipq has what ``load_int8`` gives.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from tqdm import tqdm

from .._compat import as_detector
from ..apis import build_detector, load_int8
from ..apis.calibration_data import array_or_file_pipeline, find_test_pipeline
from ..detector import Executor, executing
from ..errors import ClipQError, first_line
from ..lowering.capture import capture
from .parts import FloatPart, Setting
from .peers import PEERS, Outputs, Subject
from .timing import digits

STAGES = {
    'decoding': 'image decoded',
    'pipeline': 'resized, packed',
    'preparing': 'normalized, padded, codes',
    'network': 'network',
    'boxes': 'boxes',
}
"""What a prediction is made of, in order, and its title in tables."""


class _Clocked:
    """An executor whose seconds are added up."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.seconds = executor, 0.0

    def run(self, *inputs: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.executor.run(*inputs)
        finally:
            self.seconds += time.perf_counter() - start


class _Foreign:
    """The dense part in another runtime: flat outputs in the structure that the detector reads."""

    def __init__(self, outputs: Outputs, example: Any) -> None:
        self.outputs, self.example = outputs, example

    def run(self, *inputs: Tensor) -> Any:
        given = iter(self.outputs(*inputs))
        return _filled(self.example, given)


def _filled(tree: Any, given: Iterator[Tensor]) -> Any:
    """``tree`` with its tensors in order from ``given``."""
    if isinstance(tree, Tensor):
        return next(given)
    if isinstance(tree, Mapping):
        return {key: _filled(item, given) for key, item in tree.items()}
    return tuple(_filled(item, given) for item in tree)


class Way:
    """One runtime's way from bytes to boxes.

    Args:
        detector: Has ``data_preprocessor`` and ``predict``.
        clocked: What computes its network.
        pipeline: From an image as ``mmcv.imfrombytes`` gives it to a data sample.
    """

    def __init__(self, detector: nn.Module, clocked: Sequence[_Clocked], pipeline: Compose) -> None:
        self.detector, self.clocked, self.pipeline = detector, clocked, pipeline

    @torch.no_grad()
    def run(self, encoded: bytes) -> tuple[dict[str, float], Any]:
        """Seconds of each of :data:`STAGES`, and the boxes of the one image."""
        clock, before = time.perf_counter, self._network_seconds()
        times = [clock()]
        image = mmcv.imfrombytes(encoded)
        times.append(clock())
        data = pseudo_collate([self.pipeline(image)])
        times.append(clock())
        detector = as_detector(self.detector)
        ready = detector.data_preprocessor(data, False)
        times.append(clock())
        (sample,) = detector.predict(ready['inputs'], ready['data_samples'])
        times.append(clock())
        spent = [after - start for start, after in zip(times, times[1:], strict=False)]
        network = self._network_seconds() - before
        found = dict(zip(STAGES, (*spent[:3], network, spent[3] - network), strict=True))
        return found, sample.pred_instances

    def _network_seconds(self) -> float:
        return sum(part.seconds for part in self.clocked)


@dataclass(frozen=True)
class WayTimes:
    """Milliseconds of one runtime over all images.

    Attributes:
        name: Of the row.
        stages: Median of each stage.
        all: The whole way of each image, ascending.
        boxes: Boxes found in all images, once.
    """

    name: str
    stages: dict[str, float]
    all: list[float]
    boxes: int

    @property
    def median(self) -> float:
        return self.all[len(self.all) // 2]

    @property
    def slow(self) -> float:
        """95th percentile."""
        return self.all[min(len(self.all) - 1, int(len(self.all) * 0.95))]

    @property
    def around(self) -> float:
        """What stands around the network as a share of the network's time."""
        return (
            sum(ms for name, ms in self.stages.items() if name != 'network')
            / (self.stages['network'])
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON; milliseconds, images per second."""
        return {
            'name': self.name, 'stages': self.stages, 'median': self.median, 'p95': self.slow,
            'images_per_second': 1000 * len(self.all) / sum(self.all), 'around': self.around,
            'boxes': self.boxes,
        }  # fmt: skip


def array_pipeline(cfg: Config) -> Compose:
    """The config's test pipeline from an array on, without annotations.

    Raises:
        ClipQError: if the config has no plain test pipeline.
    """
    init_default_scope('mmdet')
    pipeline = array_or_file_pipeline(find_test_pipeline(cfg) or [])
    if pipeline is None:
        raise ClipQError(f'{cfg.filename}: found no test pipeline that reads a file, wanted one')
    return pipeline


def read_images(
    folder: Path, count: int, stock: nn.Module, pipeline: Compose
) -> tuple[list[bytes], list[Tensor]]:
    """The first images of ``folder`` that become equally large, encoded and as the network gets
    them: float32 ``(1, C, H, W)``.

    Raises:
        ClipQError: if there is none.
    """
    encoded: list[bytes] = []
    ready: list[Tensor] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in ('.jpg', '.jpeg', '.png') or len(encoded) == count:
            continue
        content = path.read_bytes()
        data = pseudo_collate([pipeline(mmcv.imfrombytes(content))])
        images = as_detector(stock).data_preprocessor(data, False)['inputs']
        if not ready or images.shape == ready[0].shape:
            encoded.append(content)
            ready.append(images)
    if not encoded:
        raise ClipQError(f'{folder}: found no .jpg or .png file, wanted images')
    return encoded, ready


def ours(path: Path, pipeline: Compose) -> Way:
    """The way of a ``.clipq`` file."""
    detector = load_int8(path)
    parts = vars(detector)
    if parts.get('int8_backend') is None:
        raise ClipQError(f'{path}: found no dense graph, wanted one')
    clocked = [_Clocked(parts['int8_backend'])]
    parts['int8_backend'] = clocked[0]
    if parts['int8_boxes']:
        clocked += [_Clocked(backend) for backend in parts['int8_boxes']]
        vars(detector.get_submodule('roi_head'))['int8_boxes'] = clocked[1:]
    return Way(detector, clocked, pipeline)


def float_way(
    cfg: Config, state: Mapping[str, Tensor], image: Tensor, pipeline: Compose,
    outputs: Outputs | None, stack: ExitStack,
) -> Way:  # fmt: skip
    """The float detector's way, its dense part in another runtime if ``outputs`` are given.

    Args:
        cfg: The detector's config.
        state: Its parameters.
        image: An image as the network gets it.
        pipeline: From an array to a data sample.
        outputs: Computes the dense part.
        stack: Gives the detector its own code back when it is left.
    """
    stock = build_detector(cfg.model).eval()
    stock.load_state_dict(state)
    part = capture(copy.deepcopy(stock))
    dense: Executor = FloatPart(part.module)
    if outputs is not None:
        with torch.no_grad():
            dense = _Foreign(outputs, part.module(image))
    clocked = [_Clocked(dense), *(_Clocked(FloatPart(box)) for box in part.boxes)]
    stack.enter_context(executing(stock, part.head, clocked[0], clocked[1:]))
    return Way(stock, clocked, pipeline)


def time_ways(
    ways: Mapping[str, Way], encoded: Sequence[bytes], rounds: int, pause: float = 0.2
) -> list[WayTimes]:
    """Each way over all images, in turn, after a round that does not count.

    Args:
        ways: By the name of the row.
        encoded: Images.
        rounds: How often each image counts.
        pause: Seconds before a way's turn, in which threads of the one before that wait for more
            work give up, and an image that does not count.
    """
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    boxes = dict.fromkeys(ways, 0)
    for number in tqdm(range(rounds + 1), desc='rounds', unit='round', leave=False):
        for name, way in ways.items():
            time.sleep(pause)
            way.run(encoded[0])
            for content in encoded:
                stages, found = way.run(content)
                if number:
                    times[name].append(stages)
                else:
                    boxes[name] += len(found)
    return [_summary(name, found, boxes[name]) for name, found in times.items()]


def _summary(name: str, times: Sequence[Mapping[str, float]], boxes: int) -> WayTimes:
    stages = {
        stage: 1000 * sorted(found[stage] for found in times)[len(times) // 2] for stage in STAGES
    }
    return WayTimes(name, stages, sorted(1000 * sum(found.values()) for found in times), boxes)


def ways_table(rows: Sequence[WayTimes], title: str) -> str:
    """Markdown table, milliseconds; ratios are to the last row's."""
    names = [*STAGES.values(), 'all, median', '95 %', 'images/s', 'around, of the network', 'boxes']
    lines = [f'| {title}, ms | {" | ".join(names)} |', f'|---{"|---" * len(names)}|']
    for row in rows:
        cells = [digits(ms) for ms in (*row.stages.values(), row.median, row.slow)]
        speed = row.as_dict()['images_per_second']
        cells += [digits(speed), f'{row.around:.0%}', str(row.boxes)]
        lines.append(f'| {row.name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def measure_ways(
    subject: Subject, files: Mapping[str, Path], encoded: Sequence[bytes], pipeline: Compose,
    threads: int, rounds: int,
) -> tuple[list[WayTimes], dict[str, str]]:  # fmt: skip
    """Time every row that has a way to boxes.

    Args:
        subject: The detector.
        files: Each row's file by its name.
        encoded: Images.
        pipeline: From :func:`array_pipeline`.
        threads: Of every runtime.
        rounds: How often each image counts.

    Returns:
        The times, and why rows are left out.
    """
    torch.set_num_threads(threads)
    setting = Setting(subject.cfg, subject.image, threads)
    left: dict[str, str] = {}
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for name, path in files.items():
            peer = PEERS[name]
            try:
                if name == 'mmclipq':
                    way = ours(path, pipeline)
                elif name == 'torch' or peer.outputs is not None:
                    outputs = None if peer.outputs is None else peer.outputs(setting, path)
                    state = subject.stock.state_dict()
                    way = float_way(subject.cfg, state, subject.image, pipeline, outputs, stack)
                else:
                    continue
                way.run(encoded[0])
            except Exception as error:
                left[name] = f'{type(error).__name__}: {first_line(error)}'
            else:
                ways[name] = way
        return time_ways(ways, encoded, rounds), left
