"""The cases that every backend must pass, against an oracle that shares no code with mmclipq.

A backend's test subclasses :class:`BackendConformance` and sets ``backend``.
"""

import numpy as np
import pytest
import torch
from oracle import (
    expected_activation,
    expected_codes,
    expected_conv_sum,
    expected_epilogue,
    limits,
    random_codes,
    spread,
    step_of,
)
from torch.nn import functional as F

from mmclipq.backends import build_backend
from mmclipq.graph import ir

S8, U8 = (True, 0), (False, 0)


def kind_of(signed_and_exponent):
    signed, exponent = signed_and_exponent
    return ir.TensorType(exponent, signed)


class BackendConformance:
    """Subclass it, set ``backend``, and every case runs on that backend."""

    backend: str
    device = 'cpu'

    def execute(self, nodes, constants, codes):
        """Run ``nodes`` on input ``codes`` (numpy, by tensor type); returns codes and result.

        The codes enter as float32 values through Quantize nodes, which is exact.
        """
        graph_nodes, inputs = [], []
        for name, (kind, values) in codes.items():
            graph_nodes += [ir.Input(f'{name}.in', ir.FLOAT), ir.Quantize(name, kind, f'{name}.in')]
            inputs.append(torch.from_numpy(values.astype(np.float32) * step_of(kind)))
        graph_nodes += nodes
        last = graph_nodes[-1]
        if last.type.is_codes:
            graph_nodes.append(ir.Dequantize('result', ir.FLOAT, last.name))
        outputs = {'result': ir.Ref(graph_nodes[-1].name)}
        graph = ir.Int8Graph(tuple(graph_nodes), outputs, constants)
        backend = build_backend(self.backend, graph, None, self.device)
        found = backend.codes(*inputs)
        for name, (kind, values) in codes.items():
            self.check_codes(found[name], values, kind)
        return found, backend.run(*inputs)['result'].cpu()

    def check_codes(self, found, expected, kind):
        assert found.dtype == (torch.int8 if kind.signed else torch.uint8)
        assert torch.equal(found.long(), torch.from_numpy(np.ascontiguousarray(expected)).long())

    def check(self, node, constants, codes, expected):
        """Result of ``node``: numpy codes, or float32 values for a float32 node."""
        found, result = self.execute([node], constants, codes)
        if not node.type.is_codes:
            assert result.dtype == torch.float32
            assert torch.equal(result, torch.from_numpy(np.ascontiguousarray(expected)))
            return
        self.check_codes(found[node.name], expected, node.type)
        values = expected.astype(np.float32) * step_of(node.type)
        assert torch.equal(result, torch.from_numpy(np.ascontiguousarray(values)))

    def product(
        self,
        shape,
        weight_shape,
        x_kind=S8,
        out=S8,
        activation='identity',
        slope=0.0,
        residual=None,
        residual_last=False,
        seed=0,
        **geometry,
    ):
        x_kind, out = kind_of(x_kind), ir.FLOAT if out is None else kind_of(out)
        x = random_codes(shape, x_kind.signed, seed)
        w = random_codes(weight_shape, True, seed + 1)
        codes = {'x': (x_kind, x)}
        if len(weight_shape) == 4:
            options = dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) | geometry
            acc, kind = expected_conv_sum(x, w, **options), ir.Conv
        else:
            acc, kind, options = np.einsum('nc,kc->nk', x, w), ir.Linear, {}
        m, b = spread(acc, out if out.is_codes else ir.TensorType(0), seed + 2)
        values = None
        if residual is not None:
            r_kind = kind_of(residual)
            r = random_codes(acc.shape, r_kind.signed, seed + 3)
            codes['r'] = (r_kind, r)
            values = r.astype(np.float32) * step_of(r_kind)
        v = expected_epilogue(acc, m, b, activation, slope, values, residual_last)
        expected = expected_codes(v, out) if out.is_codes else v
        if residual is not None:
            options |= dict(residual='r', residual_last=residual_last)
        node = kind(
            'y', out, 'x', 'w', 'e', 'm', 'b', activation=activation, slope=slope, **options
        )
        self.check(node, self.constants(w, m, b), codes, expected)
        return expected

    def constants(self, w, m, b):
        return {
            'w': torch.from_numpy(w).to(torch.int8),
            'e': torch.zeros(len(w), dtype=torch.int32),
            'm': torch.from_numpy(m),
            'b': torch.from_numpy(b),
        }

    @pytest.mark.parametrize(
        ('shape', 'weight', 'geometry'),
        [
            ((2, 3, 9, 7), (5, 3, 3, 3), dict(padding=(1, 1))),
            ((1, 1, 5, 5), (1, 1, 3, 3), {}),
            ((1, 255, 3, 5), (255, 255, 1, 1), {}),
            ((1, 255, 3, 3), (3, 255, 3, 3), dict(padding=(1, 1))),
            ((3, 3, 11, 13), (8, 3, 3, 3), dict(stride=(2, 2), padding=(1, 1))),
            ((1, 3, 23, 17), (7, 3, 7, 7), dict(stride=(2, 2), padding=(3, 3))),
            ((1, 4, 9, 12), (6, 4, 1, 1), dict(stride=(2, 3))),
            ((1, 5, 12, 10), (4, 5, 3, 3), dict(padding=(2, 2), dilation=(2, 2))),
            ((1, 2, 9, 8), (3, 2, 3, 2), dict(dilation=(1, 3), padding=(0, 1), stride=(2, 1))),
            ((1, 2, 6, 9), (3, 2, 1, 5), dict(padding=(0, 2))),
            ((2, 6, 7, 7), (9, 2, 3, 3), dict(groups=3, padding=(1, 1))),
            ((1, 64, 5, 6), (64, 32, 1, 1), dict(groups=2)),
            ((1, 17, 7, 9), (17, 1, 3, 3), dict(groups=17, padding=(1, 1), stride=(2, 2))),
            ((2, 3, 8, 6), (3, 1, 5, 3), dict(groups=3, padding=(2, 2), dilation=(1, 2))),
            ((1, 4, 6, 6), (8, 1, 3, 3), dict(groups=4, padding=(1, 1))),
            ((1, 3, 4, 3), (2, 3, 4, 3), {}),
        ],
    )
    @pytest.mark.parametrize('x_kind', [S8, U8], ids=['s8', 'u8'])
    def test_conv_geometry(self, shape, weight, geometry, x_kind):
        self.product(shape, weight, x_kind, seed=sum(shape) + len(weight), **geometry)

    @pytest.mark.parametrize(
        ('activation', 'slope'),
        [('identity', 0.0), ('relu', 0.0), ('relu6', 0.0), ('leaky_relu', 0.1)],
    )
    @pytest.mark.parametrize(
        ('residual', 'last'),
        [(None, False), ((True, 1), False), ((True, -2), True), ((False, 0), False), (U8, True)],
    )
    @pytest.mark.parametrize('out', [(True, 0), (False, 3), (True, 4), None])
    def test_conv_epilogue(self, activation, slope, residual, last, out):
        if out is None and residual is not None:
            residual = (residual[0], 0)
        self.product(
            (2, 4, 5, 7),
            (6, 4, 3, 3),
            (False, 1),
            out,
            activation,
            slope,
            residual,
            last,
            seed=11,
            padding=(1, 1),
        )

    @pytest.mark.parametrize('features', [(1, 1), (3, 255), (255, 3), (1030, 10)])
    @pytest.mark.parametrize('x_kind', [S8, U8], ids=['s8', 'u8'])
    @pytest.mark.parametrize('out', [(True, 2), (False, 0), None])
    def test_linear(self, features, x_kind, out):
        inputs, outputs = features
        activation = 'relu' if out == (False, 0) else 'identity'
        self.product((3, inputs), (outputs, inputs), x_kind, out, activation, seed=inputs)

    def exact(self, acc_wanted, m, b, out, activation='identity', slope=0.0):
        """A 1x1 convolution whose sums are given: the code itself times weight one."""
        x_kind, out = ir.TensorType(0), kind_of(out)
        x = np.asarray(acc_wanted).reshape(1, 1, 1, -1)
        w = np.ones((1, 1, 1, 1), np.int64)
        m, b = np.float32([m]), np.float32([b])
        v = expected_epilogue(x, m, b, activation, slope)
        node = ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', activation=activation, slope=slope)
        expected = expected_codes(v, out)
        self.check(node, self.constants(w, m, b), {'x': (x_kind, x)}, expected)
        return expected.ravel()

    @pytest.mark.parametrize('shift', [1, 2, 3])
    def test_ties_round_to_even(self, shift):
        # The step of exponent 7 is one, so results are the multiples of 2**-shift.
        found = self.exact(np.arange(-128, 128), 2.0**-shift, 0.0, (True, 7))
        half = 128 + np.array([-3, -1, 1, 3]) * 2 ** (shift - 1)
        assert found[half].tolist() == [-2, 0, 0, 2]

    def test_ties_of_bias_after_activation(self):
        found = self.exact(np.arange(-128, 128), 1.0, 0.5, (True, 7), 'leaky_relu', 0.5)
        # -1 + .5 halves to -.25 -> 0; -3 + .5 = -2.5 -> -1.25 -> -1; 1.5 -> 2; 2.5 -> 2.
        assert found[[127, 125, 129, 130]].tolist() == [0, -1, 2, 2]

    @pytest.mark.parametrize('out', [(True, 7), (False, 8)])
    def test_saturation(self, out):
        found = self.exact(np.arange(-128, 128), 1e9, 0.0, out)
        assert found[[0, 127, 128, 129, 255]].tolist() == (
            [-128, -128, 0, 127, 127] if out[0] else [0, 0, 0, 255, 255]
        )

    @pytest.mark.parametrize('x_kind', [S8, U8], ids=['s8', 'u8'])
    def test_smallest_weight_and_code(self, x_kind):
        """-128 on both sides: pairs of products overflow int16."""
        kind, out = kind_of(x_kind), ir.TensorType(7)
        x = np.full((1, 64, 3, 3), limits(kind.signed)[0 if kind.signed else 1])
        w = np.full((2, 64, 3, 3), -128)
        acc = expected_conv_sum(x, w, (1, 1), (1, 1), (1, 1), 1)
        m = np.float32([100 / np.abs(acc).max(), 1 / 64 / 128])
        v = expected_epilogue(acc, m, np.float32([0, 3]), 'identity', 0.0)
        node = ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', padding=(1, 1))
        constants = self.constants(w, m, np.float32([0, 3]))
        self.check(node, constants, {'x': (kind, x)}, expected_codes(v, out))

    @pytest.mark.parametrize('axes', [2, 4])
    def test_sums_beyond_float32(self, axes):
        """Odd sums above 2**24 lose their last bit once, half to even, and nowhere before."""
        kind, out = ir.TensorType(8, False), ir.TensorType(7)
        x = np.full((256, 1026), 255)
        x[:, -1] = np.arange(256)
        w = np.full((1, 1026), 127)
        w[0, -1] = 1
        acc = x @ w.T
        assert acc.min() > 2**24
        m, b = np.float32([1]), np.float32([-acc.min() - 128 + 1])
        x, w = (x.reshape(256, -1, 1, 1), w.reshape(1, -1, 1, 1)) if axes == 4 else (x, w)
        v = expected_epilogue(acc, m, b, 'identity', 0.0)
        expected = expected_codes(v, out).reshape((256, 1) + (1,) * (axes - 2))
        assert len(set(expected.ravel().tolist())) > 100
        cls = ir.Conv if axes == 4 else ir.Linear
        node = cls('y', out, 'x', 'w', 'e', 'm', 'b')
        self.check(node, self.constants(w, m, b), {'x': (kind, x)}, expected)

    @pytest.mark.parametrize('kind', [(True, 0), (True, -5), (True, 9), (False, 2), (False, -7)])
    def test_quantize(self, kind):
        kind = kind_of(kind)
        step = step_of(kind)
        middles = ((np.arange(-300, 301) + 0.5) * step).astype(np.float32)
        values = np.concatenate([
            middles,
            np.nextafter(middles, np.float32(np.inf)),
            np.nextafter(middles, np.float32(-np.inf)),
            np.arange(-300, 301) * step,
            np.float32(2.0**kind.exponent) * np.float32([1, -1, 0, -0.0]),
            np.float32([1e30, -1e30, np.inf, -np.inf, 1e-38, -1e-38]),
        ]).astype(np.float32).reshape(1, 1, 1, -1)  # fmt: skip
        nodes = (ir.Input('in', ir.FLOAT), ir.Quantize('x', kind, 'in'))
        nodes += (ir.Dequantize('y', ir.FLOAT, 'x'),)
        backend = build_backend(
            self.backend, ir.Int8Graph(nodes, ir.Ref('y'), {}), None, self.device
        )
        expected = expected_codes(values, kind)
        self.check_codes(backend.codes(torch.from_numpy(values))['x'], expected, kind)
        found = backend.run(torch.from_numpy(values)).cpu()
        assert torch.equal(found, torch.from_numpy(expected.astype(np.float32) * step))

    @pytest.mark.parametrize('source', [(True, 0), (False, 0), (True, -30), (False, 30)])
    @pytest.mark.parametrize('shift', [-9, -3, -1, 0, 1, 2, 3, 8])
    @pytest.mark.parametrize('signed', [True, False])
    def test_requantize_all_codes(self, source, shift, signed):
        source = kind_of(source)
        kind = ir.TensorType(source.exponent + shift, signed)
        low, high = limits(source.signed)
        x = np.arange(low, high + 1).reshape(1, 2, 8, 16)
        expected = expected_codes(x.astype(np.float32) * step_of(source), kind)
        self.check(ir.Requantize('y', kind, 'x'), {}, {'x': (source, x)}, expected)

    @pytest.mark.parametrize('kinds', [(S8, S8, (True, 1)), (S8, U8, (False, 0)),
                                       ((True, 3), (True, -2), (True, 2)),
                                       ((False, 1), (False, -1), (False, 1))])  # fmt: skip
    @pytest.mark.parametrize(
        ('activation', 'slope'),
        [('identity', 0.0), ('relu', 0.0), ('relu6', 0.0), ('leaky_relu', 0.125)],
    )
    def test_add(self, kinds, activation, slope):
        a_kind, b_kind, out = (kind_of(kind) for kind in kinds)
        # Every code meets every other one.
        a = np.arange(*np.add(limits(a_kind.signed), (0, 1))).repeat(256).reshape(1, 4, 128, 128)
        b = np.tile(np.arange(*np.add(limits(b_kind.signed), (0, 1))), 256).reshape(a.shape)
        v = a.astype(np.float32) * step_of(a_kind) + b.astype(np.float32) * step_of(b_kind)
        expected = expected_codes(expected_activation(v, activation, slope), out)
        node = ir.Add('y', out, 'a', 'b', activation, slope)
        self.check(node, {}, {'a': (a_kind, a), 'b': (b_kind, b)}, expected)

    def test_add_a_tensor_to_itself(self):
        kind = ir.TensorType(0)
        x = np.arange(-128, 128).reshape(1, 1, 16, 16)
        expected = np.clip(2 * x, -128, 127)
        self.check(ir.Add('y', kind, 'x', 'x'), {}, {'x': (kind, x)}, expected)

    @pytest.mark.parametrize('kind', [S8, U8], ids=['s8', 'u8'])
    @pytest.mark.parametrize('channels', [(1, 3), (255, 1, 3), (3,), (64, 17)])
    def test_concat(self, kind, channels):
        kind = kind_of(kind)
        codes = {
            f't{i}': (kind, random_codes((2, c, 3, 5), kind.signed, i))
            for i, c in enumerate(channels)
        }
        expected = np.concatenate([values for _, values in codes.values()], 1)
        self.check(ir.Concat('y', kind, tuple(codes)), {}, codes, expected)

    @pytest.mark.parametrize(
        ('kernel', 'stride', 'padding', 'dilation', 'ceil_mode'),
        [
            ((2, 2), (2, 2), (0, 0), (1, 1), False),
            ((2, 2), (2, 2), (0, 0), (1, 1), True),
            ((3, 3), (2, 2), (1, 1), (1, 1), False),
            ((3, 3), (2, 2), (0, 0), (1, 1), True),
            ((5, 5), (1, 1), (2, 2), (1, 1), False),
            ((13, 13), (1, 1), (6, 6), (1, 1), False),
            ((1, 1), (2, 2), (0, 0), (1, 1), False),
            ((3, 2), (1, 2), (1, 0), (2, 1), True),
        ],
    )
    @pytest.mark.parametrize('signed', [True, False])
    def test_max_pool(self, kernel, stride, padding, dilation, ceil_mode, signed):
        kind = ir.TensorType(0, signed)
        x = random_codes((2, 3, 15, 13), signed, 5)
        if signed:
            x = np.minimum(x, -1)  # zero padding would win everywhere
        expected = F.max_pool2d(
            torch.from_numpy(x).double(), kernel, stride, padding, dilation, ceil_mode
        )
        node = ir.MaxPool('y', kind, 'x', kernel, stride, padding, dilation, ceil_mode)
        self.check(node, {}, {'x': (kind, x)}, expected.long().numpy())

    @pytest.mark.parametrize('kind', [S8, U8], ids=['s8', 'u8'])
    @pytest.mark.parametrize('scale', [(2.0, 2.0), (3.0, 1.0)])
    def test_upsample_by_scale(self, kind, scale):
        kind = kind_of(kind)
        x = random_codes((2, 3, 7, 5), kind.signed, 9)
        expected = x.repeat(int(scale[0]), 2).repeat(int(scale[1]), 3)
        node = ir.Upsample('y', kind, 'x', scale=scale)
        self.check(node, {}, {'x': (kind, x)}, expected)

    @pytest.mark.parametrize('sizes', [(13, 25), (10, 19), (7, 14), (1, 5), (9, 9)])
    @pytest.mark.parametrize('kind', [S8, U8], ids=['s8', 'u8'])
    def test_upsample_like(self, sizes, kind):
        kind, (small, large) = kind_of(kind), sizes
        x = random_codes((1, 3, small, 4), kind.signed, small)
        like = random_codes((1, 2, large, 7), True, 1)
        rows, cols = np.arange(large) * small // large, np.arange(7) * 4 // 7
        expected = x[:, :, rows][:, :, :, cols]
        node = ir.Upsample('y', kind, 'x', like='like')
        codes = {'x': (kind, x), 'like': (ir.TensorType(3), like)}
        self.check(node, {}, codes, expected)

    def test_a_tensor_with_several_readers_and_both_outputs(self):
        """A conv's codes feed a residual, a concatenation and an output; nothing is overwritten."""
        kind = ir.TensorType(7)
        x = random_codes((1, 3, 5, 5), True, 2)
        w = np.eye(3, dtype=np.int64).reshape(3, 3, 1, 1)
        one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
        conv = dict(weight='w', exponents='e', multiplier='m', bias='b')
        nodes = [
            ir.Conv('a', kind, x='x', **conv),
            ir.Conv('b', kind, x='a', activation='relu', residual='a', **conv),
            ir.Conv('c', kind, x='a', activation='relu', residual='a', residual_last=True, **conv),
            ir.Concat('d', kind, ('a', 'b', 'x', 'c')),
        ]
        found, _ = self.execute(nodes, self.constants(w, one, zero), {'x': (kind, x)})
        b = np.clip(np.maximum(2 * x, 0), -128, 127)
        c = np.clip(np.maximum(x, 0) + x, -128, 127)
        self.check_codes(found['a'], x, kind)
        self.check_codes(found['d'], np.concatenate([x, b, x, c], 1), kind)
