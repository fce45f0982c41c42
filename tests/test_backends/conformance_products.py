"""Conformance of convolutions and linear layers with their epilogue."""

import numpy as np
import pytest
from conformance_base import S8, U8, ConformanceBase, kind_of
from oracle import (
    expected_codes,
    expected_conv_sum,
    expected_epilogue,
    limits,
    random_codes,
    spread,
    values_of,
)

from mmclipq.graph import ir


class ProductConformance(ConformanceBase):
    def weights(self, shape, seed):
        return random_codes(shape, True, seed)

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
        w = self.weights(weight_shape, seed + 1)
        codes = {'x': (x_kind, x)}
        if len(weight_shape) == 4:
            options = dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) | geometry
            acc, kind = expected_conv_sum(x - x_kind.offset, w, **options), ir.Conv
        else:
            rows = (x - x_kind.offset).reshape(-1, shape[-1])
            acc, kind, options = np.einsum('nc,kc->nk', rows, w), ir.Linear, {}
        m, b = spread(acc, out if out.is_codes else ir.TensorType(0), seed + 2)
        whole = acc.shape if len(weight_shape) == 4 else (*shape[:-1], weight_shape[0])
        values = None
        if residual is not None:
            r_kind = kind_of(residual)
            r = random_codes(acc.shape, r_kind.signed, seed + 3)
            codes['r'] = (r_kind, r.reshape(whole))
            values = values_of(r, r_kind)
        v = expected_epilogue(acc, m, b, activation, slope, values, residual_last)
        expected = (expected_codes(v, out) if out.is_codes else v).reshape(whole)
        if residual is not None:
            options |= dict(residual='r', residual_last=residual_last)
        node = kind(
            'y', out, 'x', 'w', 'e', 'm', 'b', activation=activation, slope=slope, **options
        )
        self.check(node, self.constants(w, m, b), codes, expected)
        return expected

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

    @pytest.mark.parametrize('x_kind', [S8, U8], ids=['s8', 'u8'])
    @pytest.mark.parametrize('residual', [None, S8], ids=['alone', 'residual'])
    @pytest.mark.parametrize('rows', [(2, 9), (2, 3, 5), (1, 1, 7)], ids=str)
    def test_linear_over_the_last_of_several_axes(self, rows, residual, x_kind):
        self.product((*rows, 11), (6, 11), x_kind, residual=residual, seed=3)
        self.product((*rows, 11), (6, 11), x_kind, None, 'sigmoid', seed=4)

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

    @pytest.mark.parametrize('channels', [114, 115])
    @pytest.mark.parametrize('x_kind', [S8, U8], ids=['s8', 'u8'])
    def test_extremes_of_3x3_kernels(self, channels, x_kind):
        """Sums up to 2**25 and beyond, where a kernel may count in fewer bits than 32."""
        kind, out = kind_of(x_kind), ir.TensorType(7)
        low, high = limits(kind.signed)
        rng = np.random.default_rng(channels)
        x = rng.choice([low, high], (2, channels, 6, 7))
        w = rng.choice([-128, 127], (32, channels, 3, 3))
        x[0], w[:2] = high if x_kind == U8 else low, -128
        acc = expected_conv_sum(x, w, (1, 1), (1, 1), (1, 1), 1)
        m, b = spread(acc, out, 1)
        v = expected_epilogue(acc, m, b, 'identity', 0.0)
        node = ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', padding=(1, 1))
        self.check(node, self.constants(w, m, b), {'x': (kind, x)}, expected_codes(v, out))

    @pytest.mark.parametrize('axes', [2, 4])
    @pytest.mark.parametrize(('depth', 'unit'), [(1026, 2), (65536, 128)])
    def test_sums_beyond_float32(self, axes, depth, unit):
        """Sums up to 2**31 are exact, and rounded once, half to even, to their float32 unit."""
        kind, out = ir.TensorType(8, False), ir.TensorType(7)
        rng = np.random.default_rng(depth)
        x, w = rng.integers(200, 256, (1, depth)), rng.integers(64, 128, (32, depth))
        acc = x @ w.T
        assert unit * 2**23 <= acc.min() <= acc.max() < unit * 2**24
        # Half a unit is one code: sums that were not rounded to float32 give odd codes.
        m = np.full(32, 2 / unit, np.float32)
        b = (2 * (np.arange(-16, 16) - acc[0] // unit)).astype(np.float32)
        if axes == 4:
            x, w, acc = x[:, :, None, None], w[:, :, None, None], acc[:, :, None, None]
        v = expected_epilogue(acc, m, b, 'identity', 0.0)
        expected = expected_codes(v, out)
        assert set(expected.ravel() % 2) == {0}
        cls = ir.Conv if axes == 4 else ir.Linear
        node = cls('y', out, 'x', 'w', 'e', 'm', 'b')
        self.check(node, self.constants(w, m, b), {'x': (kind, x)}, expected)
