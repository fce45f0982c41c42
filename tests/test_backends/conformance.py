"""The cases that every backend must pass, against an oracle that shares no code with mmclipq.

A backend's test subclasses :class:`BackendConformance` and sets ``backend``.
"""

import numpy as np
import pytest
import torch
from conformance_base import S8, U8, kind_of
from conformance_forms import FormConformance
from conformance_products import ProductConformance
from conformance_regions import RegionConformance
from oracle import expected_activation, expected_codes, limits, random_codes, step_of
from torch.nn import functional as F

from mmclipq.backends import build_backend
from mmclipq.graph import ir


class BackendConformance(ProductConformance, RegionConformance, FormConformance):
    """Subclass it, set ``backend``, and every case runs on that backend."""

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
