"""ONNX Runtime and OpenVINO on exported graphs: the conformance cases, to one step, and threads."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conformance import BackendConformance
from conformance_base import U8
from conformance_forms import MOVED
from conformance_regions import MANY

from mmclipq.backends import build_backend
from mmclipq.backends.runtimes.exported import saturates
from mmclipq.backends.runtimes.onnxruntime import OnnxRuntimeBackend
from mmclipq.backends.runtimes.openvino import OpenVinoBackend
from mmclipq.errors import ClipQError
from mmclipq.graph import ir

pytest.importorskip('onnx')


class RuntimeConformance(BackendConformance):
    """The same cases; a runtime that adds in its own order may differ by one step."""

    def check_codes(self, found, expected, kind):
        assert found.dtype == (torch.int8 if kind.signed else torch.uint8)
        wanted = torch.from_numpy(np.ascontiguousarray(expected)).long()
        assert found.shape == wanted.shape
        assert not wanted.numel() or (found.long() - wanted).abs().max() <= 1

    def check(self, node, constants, codes, expected):
        found, result = self.execute([node], constants, codes)
        if node.type.is_codes:
            self.check_codes(found[node.name], expected, node.type)
        else:
            wanted = torch.from_numpy(np.ascontiguousarray(expected))
            torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ('size', 'kernel', 'stride', 'dilation'),
        [((7, 8), 3, (2, 2), (1, 1)), ((8, 7), 5, (2, 2), (1, 1)), ((6, 9), 3, (1, 1), (2, 1))],
    )
    @pytest.mark.parametrize(('groups', 'channels'), [(1, 4), (12, 12)])
    @pytest.mark.parametrize('kind', [U8, MOVED])
    def test_conv_with_covering_padding(
        self, size, kernel, stride, dilation, groups, channels, kind
    ):
        super().test_conv_with_covering_padding(
            size, kernel, stride, dilation, groups, channels, kind
        )

    # Turned-over regions, which no detector proposes, are not defined elsewhere.
    @pytest.mark.parametrize('rois', [MANY, []], ids=['many', 'none'])
    @pytest.mark.parametrize('kinds', [((True, 0), (True, 0)), ((False, 0), (False, 0))])
    @pytest.mark.parametrize(
        ('output_size', 'sampling_ratio', 'aligned'), [((7, 7), 0, True), ((3, 3), 0, False)]
    )
    def test_roi_align(self, rois, kinds, output_size, sampling_ratio, aligned):
        super().test_roi_align(rois, kinds, output_size, sampling_ratio, aligned)


class TestOnnxRuntime(RuntimeConformance):
    """As the target standard; its own one rounds twice before leaky relu and sums."""

    backend = 'onnxruntime'
    test_sums_beyond_float32 = None  # this target leaves the sums in float32 there

    @pytest.fixture(autouse=True)
    def _placement(self, monkeypatch):
        pytest.importorskip('onnxruntime')
        monkeypatch.setattr(OnnxRuntimeBackend, 'target', 'standard')


class TestOpenVino(RuntimeConformance):
    backend = 'openvino'
    if saturates():
        test_sums_beyond_float32 = None  # codes are multiplied in float32 there

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip('openvino')

    @pytest.mark.parametrize('exponent', [0, 3])
    @pytest.mark.parametrize('signed', [True, False])
    def test_quantize(self, exponent, signed):
        """Midpoints may fall to either side, and nothing else may differ."""
        kind = ir.TensorType(exponent, signed)
        step = 2.0**kind.step_exponent
        values = torch.arange(-600, 600).view(1, 1, 30, 40) * 0.25 * step
        nodes = (ir.Input('in', ir.FLOAT), ir.Quantize('x', kind, 'in'))
        backend = build_backend('openvino', ir.Int8Graph(nodes, ir.Ref('x'), {}))
        codes = backend.run(values).float()
        exact = (values / step).clamp(*((-128, 127) if signed else (0, 255)))
        assert (codes - exact).abs().max() <= 0.5


class TestTable(RuntimeConformance):
    """The exported integers for fixed point, which round biases to units of the sums."""

    backend = 'table'


def graph(activation='leaky_relu', residual=None, **last):
    """One convolution behind another, with sums in the range of their tensors."""
    generator = torch.Generator().manual_seed(0)
    kind = ir.TensorType(1)
    constants = {}
    for name in 'ab':
        constants[f'w{name}'] = torch.randint(-128, 128, (8, 8, 3, 3), generator=generator).to(
            torch.int8
        )
        constants[f'e{name}'] = torch.zeros(8, dtype=torch.int32)
        # Of both signs, and one channel that is multiplied by zero.
        constants[f'm{name}'] = torch.randn(8, generator=generator) * 2.0**-17
        constants[f'm{name}'][3] = 0
        constants[f'b{name}'] = torch.randn(8, generator=generator) * 0.1
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Conv('a', kind, 'x', 'wa', 'ea', 'ma', 'ba', activation, 0.1, padding=(1, 1)),
        ir.Conv('b', kind, 'a', 'wb', 'eb', 'mb', 'bb', activation, 0.1, residual, padding=(1, 1),
                **last),
    )  # fmt: skip
    return ir.Int8Graph(nodes, ir.Ref('b'), constants)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('activation', ['identity', 'relu', 'relu6', 'leaky_relu'])
@pytest.mark.parametrize('residual', [None, 'x'])
def test_first_layer_that_parts_does_so_by_one_step(runtime, activation, residual):
    pytest.importorskip(runtime)
    made = graph(activation, residual)
    ours, other = (build_backend(name, made) for name in ('reference', runtime))
    for shape in [(1, 8, 9, 11), (4, 8, 5, 6), (2, 8, 16, 16)]:
        image = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        wanted, found = ours.codes(image), other.codes(image)
        apart = {name: (found[name].int() - wanted[name].int()).abs() for name in wanted}
        assert apart['x'].max() == 0
        assert apart['a'].max() <= 1
        assert found['b'].shape == wanted['b'].shape
        # The next layer adds up what the first one differs by; on the same codes it is exact, too.
        conv = made.nodes[-1]
        inputs = {name: ir.Input(name, ir.TensorType(1)) for name in conv.inputs}
        alone = ir.Int8Graph((*inputs.values(), conv), made.outputs, made.constants)
        again = build_backend(runtime, alone).run(*(wanted[name] for name in inputs))
        assert (again.int() - wanted['b'].int()).abs().max() <= 1


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('signed', [True, False])
def test_a_convolution_behind_a_concatenation(runtime, signed):
    """OpenVINO's is off by many steps if signed values are joined, and right if codes are."""
    pytest.importorskip(runtime)
    made = graph('leaky_relu' if signed else 'relu')
    image, x, a, b = made.nodes
    kind = ir.TensorType(1, signed)
    nodes = (
        image,
        x,
        dataclasses.replace(a, type=kind),
        dataclasses.replace(b, name='c', x='x', type=kind),
        ir.Upsample('up', kind, 'a', (2.0, 2.0)),
        ir.Upsample('like', kind, 'c', like='up'),
        ir.Concat('cat', kind, ('up', 'like')),
        dataclasses.replace(b, name='y', x='cat', weight='wide', activation='leaky_relu'),
    )
    constants = dict(made.constants)
    constants['wide'] = torch.cat([constants['wa'], constants['wb']], 1)
    made = ir.Int8Graph(nodes, ir.Ref('y'), constants)
    values = torch.rand(2, 8, 9, 7, generator=torch.Generator().manual_seed(2)) * 2 - 1
    wanted, found = (build_backend(name, made).run(values) for name in ('reference', runtime))
    apart = (found.int() - wanted.int()).abs()
    # Single codes of the layers before may differ and move a sum behind them.
    assert apart.max() <= 2
    assert (apart > 0).float().mean() < 0.05


def test_codes_of_minus_128_under_a_negative_multiplier():
    """Their sign cannot be turned in int8, so the channel's factor stands behind the sums."""
    pytest.importorskip('onnxruntime')
    made = graph('identity')
    constants = dict(made.constants)
    constants['wa'] = constants['wa'].clone()
    constants['wa'][:, 0] = -128
    made = ir.Int8Graph(made.nodes, ir.Ref('a'), constants)
    assert (constants['ma'] < 0).any()
    image = torch.rand(1, 8, 7, 7) * 0.1
    ours, other = (build_backend(name, made) for name in ('reference', 'openvino'))
    assert (ours.run(image).int() - other.run(image).int()).abs().max() <= 1


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_threads_share_a_backend(runtime):
    pytest.importorskip(runtime)
    backend = build_backend(runtime, graph())
    images = [torch.rand(1 + i % 2, 8, 6 + i % 3, 7) for i in range(12)]
    wanted = [backend.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(backend.run, images * 3))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 3, strict=True))


@pytest.mark.parametrize('cls', [OnnxRuntimeBackend, OpenVinoBackend])
def test_missing_package_is_named(cls, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert "pip install 'mmclipq[export]'" in cls.unavailable('cpu')
    assert 'wanted cpu' in cls.unavailable('cuda')
    with pytest.raises(ClipQError, match=f"backend '{cls.name}': found no package 'onnx'"):
        build_backend(cls.name, graph())
