"""What the benchmark compares: one detector's dense part in every runtime that is installed.

Each peer writes a file once and loads it for every setting, as somebody would who deploys it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..apis import Quantized, save_int8
from ..lowering.capture import capture
from .parts import FloatWay, Int8Way, Run, Setting

Outputs = Callable[[Tensor], Sequence[Tensor]]
"""From float32 images ``(N, C, H, W)`` to the dense part's outputs, one after another."""


@dataclass(frozen=True)
class Subject:
    """The detector under comparison.

    Attributes:
        cfg: Its config.
        stock: The float detector, in evaluation mode.
        model: The same with clipped layers, from which ``quantized`` was made.
        quantized: Its integer graphs.
        images: Float32 images ``(1, C, H, W)`` of one size, which calibrate other runtimes' int8.
    """

    cfg: Config
    stock: nn.Module
    model: nn.Module
    quantized: Quantized
    images: Sequence[Tensor]

    @property
    def image(self) -> Tensor:
        """The first one, where one is enough."""
        return self.images[0]

    def dense_part(self) -> nn.Module:
        """Backbone, neck and dense head in float, with one tuple of tensors as output."""
        return _Flat(capture(self.stock).module).eval()


@dataclass(frozen=True)
class Peer:
    """One row of the benchmark.

    Attributes:
        packages: What must be installed.
        save: Writes the runtime's file into a folder and returns its path; files that are there
            already may be used.
        load: From the file to what executes the dense part once.
        compiles: Whether loading compiles for minutes, which is left out of the start's time.
        regions: From the file to what executes RoIAlign and box heads once on the setting's
            regions; None if the peer has no such row.
        whole: From the file to what has mmdet's ``predict``; None if the peer has no such row.
        obstacle: Why the peer cannot run although all is installed; empty if it can.
        outputs: From the file to what computes the dense part's outputs of images that it is
            given; None if the peer is not a runtime of its own.
    """

    packages: tuple[str, ...]
    save: Callable[[Subject, Path], Path]
    load: Callable[[Setting, Path], Run]
    compiles: bool = False
    regions: Callable[[Setting, Path], Run] | None = None
    whole: Callable[[Setting, Path], Any] | None = None
    obstacle: Callable[[], str] = str
    outputs: Callable[[Setting, Path], Outputs] | None = None

    @property
    def missing(self) -> str:
        """Why the peer cannot run; empty if it can."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f'not installed: {", ".join(absent)}' if absent else self.obstacle()


def size_of(path: Path) -> int:
    """Bytes of a peer's file, with OpenVINO's weights beside it."""
    weights = path.with_suffix('.bin')
    return path.stat().st_size + (weights.stat().st_size if path.suffix == '.xml' else 0)


class _Flat(nn.Module):
    """The traced part with its outputs as one tuple of tensors, as exporters want them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(_leaves(self.module(image)))


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    else:
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _leaves(item)


def save_state(subject: Subject, folder: Path) -> Path:
    """Write the float detector's parameters."""
    path = folder / 'float.pth'
    if not path.exists():
        torch.save(subject.stock.state_dict(), path)
    return path


def _save_onnx(subject: Subject, folder: Path) -> Path:
    path = folder / 'float.onnx'
    if not path.exists():
        torch.onnx.export(
            subject.dense_part(), (subject.image,), str(path), input_names=['image'],
            dynamic_axes={'image': {0: 'batch'}}, dynamo=False, opset_version=17,
        )  # fmt: skip
    return path


def _save_onnx_int8(subject: Subject, folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = iter([{'image': image.numpy()} for image in subject.images])

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(images, None)

    ready, path = folder / 'ready.onnx', folder / 'int8.onnx'
    # The symbolic shapes of a dynamic batch stop ONNX Runtime's own inference.
    quant_pre_process(str(_save_onnx(subject, folder)), str(ready), skip_symbolic_shape=True)
    quantize_static(str(ready), str(path), Reader(), per_channel=True)
    return path


def _onnxruntime(setting: Setting, path: Path) -> Outputs:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.add_free_dimension_override_by_name('batch', len(setting.images))
    session = onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])

    def outputs(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {'image': images.numpy()})]

    return outputs


def _converted(subject: Subject) -> Any:
    import openvino

    model = openvino.convert_model(subject.dense_part(), example_input=subject.image)
    model.reshape([-1, *subject.image.shape[1:]])
    return model


def _save_openvino(subject: Subject, folder: Path) -> Path:
    import openvino

    path = folder / 'float.xml'
    openvino.save_model(_converted(subject), path, compress_to_fp16=False)
    return path


def _save_openvino_int8(subject: Subject, folder: Path) -> Path:
    import nncf
    import openvino

    path = folder / 'int8.xml'
    data = nncf.Dataset([image.numpy() for image in subject.images])
    model = nncf.quantize(_converted(subject), data, subset_size=len(subject.images))
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def _openvino(setting: Setting, path: Path) -> Outputs:
    import openvino

    options = {
        'INFERENCE_NUM_THREADS': setting.threads,
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(setting.images.shape))
    request = core.compile_model(model, 'CPU', options).create_infer_request()

    def outputs(images: Tensor) -> list[Tensor]:
        # Its memory is its own again with the next image, which comes after these are read.
        found = request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(x) for x in found.values()]

    return outputs


def _runtime(
    packages: tuple[str, ...],
    save: Callable[[Subject, Path], Path],
    outputs: Callable[[Setting, Path], Outputs],
) -> Peer:
    """A row that computes the dense part alone."""

    def load(setting: Setting, path: Path) -> Run:
        made = outputs(setting, path)
        return lambda: made(setting.images)

    return Peer(packages, save, load, outputs=outputs)


def save_ours(subject: Subject, folder: Path) -> Path:
    """Write the ``.clipq`` file."""
    path = folder / 'int8.clipq'
    if not path.exists():
        save_int8(path, subject.model, subject.quantized, subject.cfg, {})
    return path


_EAGER, _OURS = FloatWay(), Int8Way()
_ORT, _OV = ('onnx', 'onnxruntime'), ('openvino',)
PEERS: dict[str, Peer] = {
    'torch': Peer((), save_state, _EAGER.dense, regions=_EAGER.regions, whole=_EAGER.whole),
    'torch.compile': Peer((), save_state, FloatWay(compiled='default').dense, compiles=True),
    'onnxruntime': _runtime(_ORT, _save_onnx, _onnxruntime),
    'openvino': _runtime(_OV, _save_openvino, _openvino),
    'onnxruntime int8': _runtime(_ORT, _save_onnx_int8, _onnxruntime),
    'openvino int8': _runtime((*_OV, 'nncf'), _save_openvino_int8, _openvino),
    'mmclipq': Peer((), save_ours, _OURS.dense, regions=_OURS.regions, whole=_OURS.whole),
}
"""Rows by name; ratios are to the first."""
