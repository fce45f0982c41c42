"""The CUDA backend on a GPU."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conformance import BackendConformance
from cuda_cases import CASES, differing, graph_of
from emulation import EmulatedBackend, every_choice
from whole_detector import Comparison, quantized_detector

from mmclipq.backends import build_backend
from mmclipq.backends.compiled.cuda import CudaBackend
from mmclipq.ops.cuda import library as cuda_library

REASON = cuda_library.why_unavailable() or ('' if torch.cuda.is_available() else 'found no GPU')
if REASON:
    pytest.skip(REASON, allow_module_level=True)
pytestmark = pytest.mark.gpu


class TestCuda(BackendConformance):
    backend = 'cuda'
    device = 'cuda'

    @pytest.mark.parametrize('case', CASES)
    def test_every_tile_and_split(self, monkeypatch, case):
        """Fifty times each, because races do not show every time."""
        wrong = {}
        for tile, splits in every_choice(cuda_library.library()):
            monkeypatch.setattr(CudaBackend, '_choose', EmulatedBackend._choose)
            monkeypatch.setattr(CudaBackend, 'forced', (tile, splits), raising=False)
            if count := differing('cuda', case, 'cuda', repeat=50):
                wrong[tile, splits] = count
        assert not wrong

    @pytest.mark.parametrize('name', ['darknet53', 'mobilenetv2', 'retinanet', 'faster_rcnn'])
    def test_every_code_of_a_detector(self, name):
        """Also without an observer, where launches are recorded and then replayed."""
        model, quantized, shapes = quantized_detector(name)
        comparison = Comparison(model, quantized, 'cuda', 'cuda')
        for shape in shapes:
            comparison.check(shape, runs=3)

    def test_streams_share_a_backend(self):
        graph, _ = graph_of(x=(1, 48, 6, 5), outputs=32, kernel=3, padding=(1, 1))
        backend = build_backend('cuda', graph, None, 'cuda')
        images = [torch.rand(1, 48, 6, 5, device='cuda') for _ in range(20)]
        wanted = [backend.run(image) for image in images]
        torch.cuda.synchronize()

        def run(image):
            with torch.cuda.stream(torch.cuda.Stream()):
                found = backend.run(image)
                torch.cuda.current_stream().synchronize()
                return found

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(run, images * 5))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted * 5, strict=True))

    @pytest.mark.parametrize('tool', ['memcheck', 'racecheck'])
    def test_compute_sanitizer(self, tool):
        sanitizer = shutil.which('compute-sanitizer')
        if sanitizer is None:
            pytest.skip('found no compute-sanitizer')
        folder = str(Path(__file__).parent)
        code = (
            f'import sys; sys.path.insert(0, {folder!r})\n'
            'from cuda_cases import CASES, differing\n'
            'assert not [case for case in CASES if differing("cuda", case, "cuda")]\n'
        )
        command = [sanitizer, '--tool', tool, '--error-exitcode', '9', sys.executable, '-c', code]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
