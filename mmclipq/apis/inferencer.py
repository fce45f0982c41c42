"""Detection on images, folders, arrays and videos with an int8 file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmengine
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from tqdm import tqdm

from .._compat import as_detector
from ..errors import ClipQError
from .calibration_data import IMAGE_SUFFIXES, array_or_file_pipeline
from .exported_detector import load_detector, on_cpu_alone
from .mmdet_tools import check_range
from .overlap import in_order

VIDEO_CODECS = {'.mp4': 'mp4v', '.avi': 'MJPG'}
"""Videos that are read and written, by the file's suffix."""

_NO_TEXTS = 'texts', 'stuff_texts', 'custom_entities', 'tokens_positive'


def default_device(path: str | os.PathLike, backend: str) -> str:
    """``'cuda'`` where torch sees a GPU and ``backend`` can use it for the file, else ``'cpu'``."""
    return 'cpu' if on_cpu_alone(path, backend) or not torch.cuda.is_available() else 'cuda'


def find_inputs(inputs: Any) -> list[str | np.ndarray]:
    """The files and arrays that a path, a folder, an array, or a list of them stands for.

    Raises:
        ClipQError: if a path does not exist, a folder has no image, or an array is no image.
    """
    if not isinstance(inputs, (list, tuple)):
        inputs = [inputs]
    found: list[str | np.ndarray] = []
    for item in inputs:
        if isinstance(item, np.ndarray):
            if item.ndim != 3 or item.shape[2] != 3 or item.dtype != np.uint8:
                raise ClipQError(
                    f'found an array {item.shape} of {item.dtype}, wanted (H, W, 3) of uint8'
                )
            found.append(item)
            continue
        path = Path(item)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                suffixes = ', '.join(sorted(IMAGE_SUFFIXES))
                raise ClipQError(f'{path}: found no image, wanted {suffixes}')
            found += map(str, files)
        elif path.is_file():
            found.append(str(path))
        else:
            raise ClipQError(f'{path}: found no file, wanted an image, a folder or a video')
    return found


class Int8Inferencer(DetInferencer):
    """MMDetection's ``DetInferencer`` for a ``.clipq`` file or an exported end-to-end one.

    An exported file ends in ``.onnx`` or in OpenVINO's ``.xml``.

    ``inferencer(inputs, batch_size=1, return_vis=False, no_save_vis=False, pred_score_thr=0.3,
    no_save_pred=True, out_dir='', ...)`` takes a path, a folder, an array ``(H, W, 3)`` uint8 in
    BGR, or a list of them, and returns ``{'predictions': [...], 'visualization': [...]}`` with
    labels, scores and boxes ``(x1, y1, x2, y2)`` in pixels of each image. The path of a video gives
    one prediction for each frame, and with ``out_dir`` a video with boxes in ``vis`` and one JSON
    file in ``preds``; its frames are never held in memory together.

    Args:
        path: The file; it carries model, test pipeline and class names.
        backend: Name of the backend, or ``'auto'``.
        device: Where everything runs; by default a GPU that torch sees, for a backend that runs on
            one, else the CPU.
        palette: Colours of the boxes; by default those of the file, or random ones.
        show_progress: Whether to show a progress bar.
        workers: How many batches are read, computed and decoded at once, each by a thread of its
            own with its share of torch's threads; more images a second, each of them later.

    Raises:
        ClipQError: if the file cannot be read or holds no test pipeline.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        backend: str = 'auto',
        device: str | None = None,
        palette: str = 'none',
        show_progress: bool = True,
        workers: int = 1,
    ) -> None:
        # The parent's constructor builds a model from a config and a checkpoint.
        init_default_scope('mmdet')
        self.num_visualized_imgs = self.num_predicted_imgs = 0
        self.palette, self.show_progress, self.scope = palette, show_progress, 'mmdet'
        check_range('workers', workers, 1)
        self.workers = workers
        if not Path(path).is_file():
            raise ClipQError(f'{path}: found no file, wanted a .clipq file or an exported one')
        if device is None:
            device = default_device(path, backend)
        self.model = load_detector(path, device, backend)
        detector = as_detector(self.model)
        self.cfg: Config = detector.cfg
        colours = detector.dataset_meta.get('palette', 'random')
        detector.dataset_meta['palette'] = colours if palette == 'none' else palette
        self.pipeline = self._read_pipeline(path)
        self.collate_fn = pseudo_collate
        self.visualizer = DetLocalVisualizer()
        self.visualizer.dataset_meta = detector.dataset_meta

    def _read_pipeline(self, path: str | os.PathLike) -> Compose:
        """The file's test pipeline for a path or an array, without annotations."""
        pipeline = array_or_file_pipeline(self.cfg.test_dataloader.dataset.pipeline)
        if pipeline is None:
            raise ClipQError(
                f'{path}: found no test pipeline that reads a file, wanted one; export it again '
                'with a config that has a plain test_dataloader'
            )
        return pipeline

    def __call__(self, inputs: Any, batch_size: int = 1, **options: Any) -> dict[str, list]:
        """Predictions, and pictures if wanted; the options are those of ``DetInferencer``.

        Raises:
            ClipQError: if an input does not exist or is no readable image or video, or several
                results would get the same file name.
        """
        check_range('batch size', batch_size, 1)
        if unknown := [name for name in _NO_TEXTS if options.get(name)]:
            raise ClipQError(f'found {unknown[0]}, wanted images alone: no int8 detector reads it')
        if isinstance(inputs, os.PathLike):
            inputs = os.fspath(inputs)
        if isinstance(inputs, str) and Path(inputs).suffix.lower() in VIDEO_CODECS:
            return self._video(Path(inputs), batch_size, **options)
        inputs = find_inputs(inputs)
        if options.get('out_dir'):
            check_names(inputs)
        return super().__call__(inputs, batch_size, **options)

    def _inputs_to_list(self, inputs: Any) -> list[str | np.ndarray]:
        return find_inputs(inputs)

    def preprocess(
        self, inputs: Sequence[Any], batch_size: int = 1, **options: Any
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        """Batches of inputs with their predictions, which :meth:`forward` hands on."""
        starts = range(0, len(inputs), batch_size)
        chunks = (list(inputs[first : first + batch_size]) for first in starts)
        yield from in_order(self._detect, chunks, self.workers)

    def _detect(self, chunk: list[Any]) -> tuple[list[Any], list[Any]]:
        data = self.collate_fn([self._read(item) for item in chunk])
        with torch.no_grad():
            return chunk, as_detector(self.model).test_step(data)

    def forward(self, inputs: Any, **options: Any) -> Any:
        """The predictions, which were made with the reading."""
        return inputs

    def _read(self, item: str | np.ndarray) -> dict[str, Any]:
        # OpenCV gives no image, and mmcv an empty one, for what is none.
        if isinstance(item, str) and cv2.imread(item) is None:
            raise ClipQError(f'{item}: found no readable image, wanted one OpenCV can decode')
        return self.pipeline(item)

    def visualize(self, inputs: Sequence[Any], preds: Sequence[Any], **options: Any) -> Any:
        # The parent draws on RGB, and turns the colours of files alone.
        inputs = [x[:, :, ::-1] if isinstance(x, np.ndarray) else x for x in inputs]
        return super().visualize(inputs, preds, **options)

    def _video(
        self,
        path: Path,
        batch_size: int,
        out_dir: str = '',
        no_save_vis: bool = False,
        no_save_pred: bool = True,
        pred_score_thr: float = 0.3,
        draw_pred: bool = True,
        print_result: bool = False,
        **options: Any,
    ) -> dict[str, list]:
        if unknown := [name for name, value in options.items() if value]:
            raise ClipQError(f'{path}: found {unknown[0]} with a video, wanted out_dir instead')
        find_inputs(path)
        capture = cv2.VideoCapture(str(path))
        size = tuple(int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH,
                                                    cv2.CAP_PROP_FRAME_HEIGHT))  # fmt: skip
        if not capture.isOpened() or min(size) < 1:
            raise ClipQError(f'{path}: found no readable video, wanted one OpenCV can decode')
        picture = Path(out_dir) / 'vis' / path.name
        part = picture.with_name(f'.part-{path.name}')
        writer = None
        if out_dir and not no_save_vis:
            picture.parent.mkdir(parents=True, exist_ok=True)
            codec = cv2.VideoWriter.fourcc(*VIDEO_CODECS[path.suffix.lower()])
            rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
            writer = cv2.VideoWriter(str(part), codec, rate, size)
        results: list[dict[str, Any]] = []
        drawing = dict(return_vis=True, pred_score_thr=pred_score_thr, draw_pred=draw_pred)
        try:
            for frames, preds in tqdm(
                in_order(self._detect, _batches(capture, batch_size), self.workers),
                desc='frames',
                total=-(-int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // batch_size) or None,
                unit='batch',
                disable=not self.show_progress,
            ):
                results += [self.pred2dict(pred) for pred in preds]
                if writer is not None:
                    for drawn in self.visualize(frames, preds, **drawing):
                        writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
            if not results:
                raise ClipQError(f'{path}: found a video without frames, wanted some')
            if writer is not None:
                writer.release()
                part.replace(picture)
        finally:
            capture.release()
            if writer is not None:
                writer.release()
                part.unlink(missing_ok=True)
        if out_dir and not no_save_pred:
            mmengine.dump(results, str(Path(out_dir) / 'preds' / f'{path.stem}.json'))
        if print_result:
            print({'predictions': results})
        return {'predictions': results, 'visualization': []}


def _batches(capture: Any, size: int) -> Iterator[list[np.ndarray]]:
    """Frames of a video, BGR, ``size`` at a time."""
    frames = []
    while True:
        there, frame = capture.read()
        if there:
            frames.append(frame)
        if frames and (len(frames) == size or not there):
            yield frames
            frames = []
        if not there:
            return


def check_names(inputs: Sequence[Any]) -> None:
    """Return if results get file names of their own: they take the images' without suffix.

    Raises:
        ClipQError: naming two images with the same name.
    """
    seen: dict[str, str] = {}
    for item in inputs:
        if isinstance(item, str) and seen.setdefault(Path(item).stem, item) != item:
            raise ClipQError(
                f'{item}: found another image called {seen[Path(item).stem]}, wanted different '
                'names for the results in out_dir; give each its own out_dir'
            )
