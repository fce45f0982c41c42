"""What the benchmark compares: one detector's dense part in every runtime that is installed."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import build_backend
from ..graph.ir import Int8Graph

Run = Callable[[], Any]


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
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(item)


def _missing(*packages: str) -> str:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f'not installed: {", ".join(absent)}' if absent else ''


class Peers:
    """Runs of the dense part of a float detector, and of its integer graph.

    Noise calibrates the other runtimes' int8 models: their time does not depend on it.

    Args:
        module: The dense part without clipped layers, in evaluation mode.
        graph: The integer graph made from it.
        islands: The detector, for the graph's float steps.
        image: Float32 images ``(N, C, H, W)``.
    """

    def __init__(
        self, module: nn.Module, graph: Int8Graph, islands: nn.Module, image: Tensor
    ) -> None:
        self.module, self.graph, self.islands = _Flat(module).eval(), graph, islands
        self.image = image
        self._folder = tempfile.TemporaryDirectory()

    @property
    def all(self) -> dict[str, tuple[str, Callable[[], Run]]]:
        """By name: why the peer cannot run (empty if it can), and what prepares its run."""
        onnx = 'onnx', 'onnxruntime'
        return {
            'torch': ('', self._eager),
            'torch.compile': ('', self._compiled),
            'onnxruntime': (_missing(*onnx), lambda: self._onnxruntime(self._onnx())),
            'openvino': (_missing('openvino'), lambda: self._openvino(self._converted())),
            'onnxruntime int8': (_missing(*onnx), self._onnxruntime_int8),
            'openvino int8': (_missing('openvino', 'nncf'), self._openvino_int8),
            'mmclipq': ('', self._ours),
        }

    def _eager(self) -> Run:
        return lambda: self.module(self.image)

    def _compiled(self) -> Run:
        torch._inductor.config.freezing = True
        compiled = torch.compile(self.module)
        return lambda: compiled(self.image)

    def _ours(self) -> Run:
        backend = build_backend('auto', self.graph, self.islands)
        return lambda: backend.run(self.image)

    def _onnx(self) -> Path:
        path = Path(self._folder.name) / 'float.onnx'
        if not path.exists():
            torch.onnx.export(
                self.module, (self.image,), str(path), input_names=['image'], dynamo=False,
                opset_version=17,
            )  # fmt: skip
        return path

    def _onnxruntime(self, path: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])
        feed = {'image': self.image.numpy()}
        return lambda: session.run(None, feed)

    def _onnxruntime_int8(self) -> Run:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        images = iter([{'image': self.image.numpy()}])

        class Reader(CalibrationDataReader):
            def get_next(self):
                return next(images, None)

        folder = Path(self._folder.name)
        quant_pre_process(str(self._onnx()), str(folder / 'ready.onnx'))
        quantize_static(
            str(folder / 'ready.onnx'), str(folder / 'int8.onnx'), Reader(), per_channel=True
        )
        return self._onnxruntime(folder / 'int8.onnx')

    def _converted(self) -> Any:
        import openvino

        model = openvino.convert_model(self.module, example_input=self.image)
        model.reshape(list(self.image.shape))
        return model

    def _openvino(self, model: Any) -> Run:
        import openvino

        options = {
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
            'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_PRECISION_HINT': 'f32',
        }
        request = openvino.compile_model(model, 'CPU', options).create_infer_request()
        feed = [self.image.numpy()]
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)

    def _openvino_int8(self) -> Run:
        import nncf

        data = nncf.Dataset([self.image.numpy()])
        return self._openvino(nncf.quantize(self._converted(), data, subset_size=1))
