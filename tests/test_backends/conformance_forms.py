"""Conformance of offsets, smooth activations, products of tensors, averages and normalization."""

import math

import numpy as np
import pytest
import torch
from conformance_base import S8, U8, ConformanceBase, kind_of
from oracle import (
    expected_activation,
    expected_codes,
    expected_conv_sum,
    expected_epilogue,
    limits,
    random_codes,
    spread,
    step_of,
    values_of,
)
from torch.nn import functional as F

from mmclipq.graph import ir

SMOOTH = [
    ('silu', 0.0), ('sigmoid', 0.0), ('tanh', 0.0), ('hardswish', 0.0), ('hardsigmoid', 0.0),
    ('gelu', 0.0), ('gelu_tanh', 0.0), ('elu', 0.75), ('mish', 0.0), ('exp', 0.0),
]  # fmt: skip
MOVED = (False, 2, 16)
"""uint8 codes from -0.25 to 3.73 whose code 16 stands for zero."""


class FormConformance(ConformanceBase):
    @pytest.mark.parametrize('kind', [(False, 0, 8), (False, -5, 64), (False, 9, 32)])
    def test_quantize_with_an_offset(self, kind):
        kind = kind_of(kind)
        middles = (np.arange(-300, 301) + np.float32(0.5)) * step_of(kind)
        x = np.concatenate([middles, np.float32([1e30, -1e30, 0, -0.0])]).reshape(1, 1, 1, -1)
        nodes = (ir.Input('in', ir.FLOAT), ir.Quantize('x', kind, 'in'))
        found = self.build(ir.Int8Graph(nodes, ir.Ref('x'), {})).codes(torch.from_numpy(x))
        self.check_codes(found['x'], expected_codes(x, kind), kind)

    @pytest.mark.parametrize('source', [S8, U8, MOVED])
    @pytest.mark.parametrize('kind', [(False, 0, 64), (False, 1, 8), (False, 3, 32), S8])
    def test_requantize_offsets(self, source, kind):
        source, kind = kind_of(source), kind_of(kind)
        low, high = limits(source.signed)
        x = np.arange(low, high + 1).reshape(1, 2, 8, 16)
        expected = expected_codes(values_of(x, source), kind)
        self.check(ir.Requantize('y', kind, 'x'), {}, {'x': (source, x)}, expected)

    @pytest.mark.parametrize(
        ('shape', 'weight', 'geometry'),
        [
            ((2, 3, 9, 7), (5, 3, 3, 3), dict(padding=(1, 1))),
            ((1, 255, 3, 5), (255, 255, 1, 1), {}),
            ((3, 3, 11, 13), (8, 3, 3, 3), dict(stride=(2, 2), padding=(1, 1))),
            ((1, 16, 12, 10), (4, 16, 3, 3), dict(padding=(2, 2), dilation=(2, 2))),
            ((1, 2, 6, 9), (3, 2, 1, 5), dict(padding=(0, 2))),
            ((2, 6, 7, 7), (9, 2, 3, 3), dict(groups=3, padding=(1, 1))),
            ((1, 17, 7, 9), (17, 1, 3, 3), dict(groups=17, padding=(1, 1), stride=(2, 2))),
            ((1, 32, 9, 9), (32, 1, 5, 5), dict(groups=32, padding=(2, 2))),
            ((1, 64, 8, 8), (64, 64, 3, 3), dict(padding=(1, 1))),
            ((2, 37, 15, 30), (33, 37, 3, 3), dict(padding=(1, 1))),
            ((1, 16, 6, 5), (16, 16, 3, 3), dict(padding=(2, 0))),
        ],
    )
    @pytest.mark.parametrize('offset', [8, 64])
    def test_conv_reads_an_offset(self, shape, weight, geometry, offset):
        self.product(shape, weight, (False, 1, offset), seed=sum(shape), **geometry)

    @pytest.mark.parametrize(
        ('size', 'kernel', 'stride', 'dilation'),
        [
            ((7, 8), 3, (2, 2), (1, 1)), ((8, 7), 5, (2, 2), (1, 1)), ((6, 9), 3, (1, 1), (1, 1)),
            ((9, 5), 3, (1, 2), (2, 1)), ((4, 4), 1, (2, 2), (1, 1)),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize(('groups', 'channels'), [(1, 4), (12, 12)])
    @pytest.mark.parametrize('kind', [U8, MOVED])
    def test_conv_with_covering_padding(
        self, size, kernel, stride, dilation, groups, channels, kind
    ):
        kind, out = kind_of(kind), kind_of((True, 1))
        x = random_codes((2, channels, *size), False, kernel)
        w = random_codes((12, channels // groups, kernel, kernel), True, 2)
        around = []
        for side, step, reach in zip(size, stride, dilation, strict=True):
            total = max(0, (math.ceil(side / step) - 1) * step + (kernel - 1) * reach + 1 - side)
            around.append((total // 2, total - total // 2))
        q = np.pad(x - kind.offset, ((0, 0), (0, 0), *around))
        acc = expected_conv_sum(q, w, stride, (0, 0), dilation, groups)
        m, b = spread(acc, out, 3)
        expected = expected_codes(expected_epilogue(acc, m, b, 'identity', 0.0), out)
        node = ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', stride=stride, dilation=dilation,
                       groups=groups, covering=True)  # fmt: skip
        self.check(node, self.constants(w, m, b), {'x': (kind, x)}, expected)

    @pytest.mark.parametrize(
        ('kernel', 'geometry'),
        [
            ((2, 2), dict(stride=(2, 2))),
            ((3, 3), dict(stride=(2, 2), padding=(1, 1), output_padding=(1, 1))),
            ((4, 4), dict(stride=(2, 2), padding=(1, 1))),
            ((3, 2), dict(stride=(1, 3), padding=(1, 0), dilation=(2, 1))),
            ((3, 3), dict(padding=(1, 1), groups=2)),
        ],
    )
    @pytest.mark.parametrize('kind', [S8, MOVED])
    def test_transposed_convolution(self, kernel, geometry, kind):
        kind, out = kind_of(kind), kind_of((False, 1))
        groups = geometry.get('groups', 1)
        x = random_codes((2, 6, 5, 4), kind.signed, 1)
        w = random_codes((8, 6 // groups, *kernel), True, 2)
        weight = w.reshape(groups, 8 // groups, 6 // groups, *kernel).transpose(0, 2, 1, 3, 4)
        weight = torch.from_numpy(weight.reshape(6, 8 // groups, *kernel)).double()
        q = torch.from_numpy(x - kind.offset).double()
        acc = np.rint(F.conv_transpose2d(q, weight, **geometry).numpy()).astype(np.int64)
        m, b = spread(acc, out, 3)
        expected = expected_codes(expected_epilogue(acc, m, b, 'relu', 0.0), out)
        node = ir.ConvTranspose('y', out, 'x', 'w', 'e', 'm', 'b', 'relu', **geometry)
        self.check(node, self.constants(w, m, b), {'x': (kind, x)}, expected)

    @pytest.mark.parametrize('features', [(1, 1), (3, 255), (255, 3)])
    def test_linear_reads_an_offset(self, features):
        inputs, outputs = features
        self.product((3, inputs), (outputs, inputs), (False, 0, 32), (False, 1, 16), seed=inputs)

    @pytest.mark.parametrize(('activation', 'slope'), [('identity', 0.0), ('leaky_relu', 0.1)])
    @pytest.mark.parametrize(('residual', 'last'), [(None, False), (MOVED, False), (MOVED, True)])
    @pytest.mark.parametrize('x_kind', [U8, MOVED])
    def test_conv_writes_an_offset(self, activation, slope, residual, last, x_kind):
        self.product(
            (2, 4, 5, 7), (6, 4, 3, 3), x_kind, (False, 2, 32), activation, slope, residual, last,
            seed=5, padding=(1, 1),
        )  # fmt: skip

    @pytest.mark.parametrize(('activation', 'slope'), SMOOTH)
    @pytest.mark.parametrize(
        ('residual', 'last', 'out'),
        [
            (None, False, (False, 2, 16)),
            (None, False, None),
            ((True, 1), False, (True, 3)),
            ((False, 2, 16), True, (False, 3, 16)),
        ],
    )
    @pytest.mark.parametrize('x_kind', [U8, MOVED])
    def test_conv_with_a_smooth_activation(self, activation, slope, residual, last, out, x_kind):
        self.product(
            (2, 4, 5, 7), (6, 4, 3, 3), x_kind, out, activation, slope, residual, last,
            seed=11, padding=(1, 1),
        )  # fmt: skip

    @pytest.mark.parametrize(('activation', 'slope'), SMOOTH)
    def test_linear_with_a_smooth_activation(self, activation, slope):
        self.product((5, 30), (12, 30), S8, (True, 2), activation, slope, seed=3)

    def test_smooth_activation_of_extreme_sums(self):
        """Multipliers that reach far beyond both limits of the exponential."""
        x = np.arange(-128, 128).reshape(1, 1, 16, 16)
        m, b = np.float32([3.0]), np.float32([0.5])
        for activation, slope in SMOOTH:
            v = expected_activation(x.astype(np.float32) * m + b, activation, slope)
            node = ir.Conv('y', ir.FLOAT, 'x', 'w', 'e', 'm', 'b', activation, slope)
            constants = self.constants(np.ones((1, 1, 1, 1), np.int64), m, b)
            self.check(node, constants, {'x': (ir.TensorType(7), x)}, v)

    @pytest.mark.parametrize(
        ('activation', 'slope'), [*SMOOTH, ('relu', 0.0), ('relu6', 0.0), ('leaky_relu', 0.1)]
    )
    @pytest.mark.parametrize('kind', [(True, 3), (False, 2, 32), (True, -4)])
    @pytest.mark.parametrize('out', [(False, 2, 16), (True, 3), None])
    def test_activate_all_codes(self, activation, slope, kind, out):
        kind, out = kind_of(kind), ir.FLOAT if out is None else kind_of(out)
        low, high = limits(kind.signed)
        x = np.arange(low, high + 1).reshape(1, 4, 8, 8)
        v = expected_activation(values_of(x, kind), activation, slope)
        expected = expected_codes(v, out) if out.is_codes else v
        node = ir.Activate('y', out, 'x', activation, slope)
        self.check(node, {}, {'x': (kind, x)}, expected)

    @pytest.mark.parametrize('kinds', [((False, 1, 8), (False, 0, 64), (False, 1, 32)),
                                       (S8, (False, 2, 16), S8)])  # fmt: skip
    @pytest.mark.parametrize(
        ('activation', 'slope'), [('identity', 0.0), ('leaky_relu', 0.125), ('silu', 0.0)]
    )
    def test_add_with_offsets(self, kinds, activation, slope):
        a_kind, b_kind, out = (kind_of(kind) for kind in kinds)
        a = np.arange(*np.add(limits(a_kind.signed), (0, 1))).repeat(256).reshape(1, 4, 128, 128)
        b = np.tile(np.arange(*np.add(limits(b_kind.signed), (0, 1))), 256).reshape(a.shape)
        v = values_of(a, a_kind) + values_of(b, b_kind)
        expected = expected_codes(expected_activation(v, activation, slope), out)
        node = ir.Add('y', out, 'a', 'b', activation, slope)
        self.check(node, {}, {'a': (a_kind, a), 'b': (b_kind, b)}, expected)

    @pytest.mark.parametrize('kinds', [(S8, U8, (True, 0)), ((False, 2, 16), (False, 0), MOVED),
                                       (MOVED, (True, 1), (True, 2))])  # fmt: skip
    @pytest.mark.parametrize(
        'shapes',
        [
            ((2, 5, 3, 7), (2, 5, 1, 1)), ((2, 5, 3, 7), (2, 1, 3, 7)),
            ((2, 64, 4, 4), (2, 64, 4, 4)), ((3, 33, 5, 5), (1, 33, 1, 1)), ((4, 9), (4, 9)),
        ],
    )  # fmt: skip
    def test_mul(self, kinds, shapes):
        a_kind, b_kind, out = (kind_of(kind) for kind in kinds)
        a, b = random_codes(shapes[0], a_kind.signed, 1), random_codes(shapes[1], b_kind.signed, 2)
        expected = expected_codes(values_of(a, a_kind) * values_of(b, b_kind), out)
        node = ir.Mul('y', out, 'a', 'b')
        self.check(node, {}, {'a': (a_kind, a), 'b': (b_kind, b)}, expected)

    @pytest.mark.parametrize(
        ('kernel', 'stride', 'padding', 'ceil_mode', 'count_padding'),
        [
            (None, (1, 1), (0, 0), False, True),
            ((2, 2), (2, 2), (0, 0), False, True),
            ((2, 2), (2, 2), (0, 0), True, False),
            ((3, 3), (2, 2), (1, 1), False, True),
            ((3, 3), (2, 2), (1, 1), False, False),
            ((3, 2), (2, 1), (1, 0), True, False),
            ((3, 3), (2, 2), (1, 1), True, True),
            ((7, 7), (1, 1), (3, 3), False, True),
        ],
    )
    @pytest.mark.parametrize('kind', [S8, (False, 1, 32)])
    def test_avg_pool(self, kernel, stride, padding, ceil_mode, count_padding, kind):
        kind, out = kind_of(kind), ir.TensorType(-1)
        x = random_codes((2, 19, 15, 12), kind.signed, 5)
        q = torch.from_numpy(x - kind.offset).double()
        size = kernel or tuple(q.shape[2:])
        options = (stride, padding, ceil_mode, count_padding)
        mean = F.avg_pool2d(q, size, *options).numpy()
        total = np.rint(F.avg_pool2d(q, size, *options[:3], divisor_override=1).numpy())
        counts = np.rint(np.divide(total, mean, out=np.ones_like(mean), where=mean != 0))
        v = total.astype(np.float32) * (1 / counts).astype(np.float32) * step_of(kind)
        node = ir.AvgPool('y', out, 'x', kernel, *options)
        self.check(node, {}, {'x': (kind, x)}, expected_codes(v, out))

    @pytest.mark.parametrize('shape', [(2, 19, 5, 6), (7, 33)])
    @pytest.mark.parametrize('out', [(False, 1, 16), (True, 0), None])
    @pytest.mark.parametrize('activation', ['identity', 'relu', 'silu'])
    def test_affine(self, shape, out, activation):
        kind, out = kind_of(MOVED), ir.FLOAT if out is None else kind_of(out)
        x, rng = random_codes(shape, False, 3), np.random.default_rng(4)
        m = rng.uniform(-0.02, 0.02, shape[1]).astype(np.float32)
        b = rng.uniform(-1, 1, shape[1]).astype(np.float32)
        axes = (-1, 1, 1) if len(shape) == 4 else (-1,)
        v = (x - kind.offset).astype(np.float32) * m.reshape(axes) + b.reshape(axes)
        v = expected_activation(v, activation, 0.0)
        node = ir.Affine('y', out, 'x', 'm', 'b', activation)
        constants = {'m': torch.from_numpy(m), 'b': torch.from_numpy(b)}
        expected = expected_codes(v, out) if out.is_codes else v
        self.check(node, constants, {'x': (kind, x)}, expected)

    def normalized(self, node, x, kind, weight, bias, axes, shape):
        """Checks a normalization whose statistics run over ``axes`` of ``x`` as ``shape``."""
        q = (x - kind.offset).reshape(shape)
        step = float(step_of(kind))
        count = np.prod([q.shape[axis] for axis in axes])
        mean = q.sum(axes, keepdims=True) / np.float64(count)
        var = np.maximum((q * q).sum(axes, keepdims=True) / np.float64(count) - mean * mean, 0)
        inverse = 1 / np.sqrt(var * (step * step) + node.eps)
        spread = [np.broadcast_to(v, shape).reshape(x.shape) for v in (mean, inverse)]
        channel = (1, -1, 1, 1) if x.ndim == 4 else (-1,)
        g = weight.astype(np.float64).reshape(channel) * spread[1]
        m = (g * step).astype(np.float32)
        b = (bias.astype(np.float64).reshape(channel) - (spread[0] * step) * g).astype(np.float32)
        v = (x - kind.offset).astype(np.float32) * m + b
        v = expected_activation(v, node.activation, node.slope)
        expected = expected_codes(v, node.type) if node.type.is_codes else v
        constants = {'g': torch.from_numpy(weight), 'b': torch.from_numpy(bias)}
        self.check(node, constants, {'x': (kind, x)}, expected)

    @pytest.mark.parametrize(('channels', 'groups'), [(6, 3), (32, 32), (64, 8), (17, 1)])
    @pytest.mark.parametrize('kind', [(True, 3), MOVED])
    @pytest.mark.parametrize(('out', 'activation'), [((False, 2), 'relu'), ((True, 2), 'identity'),
                                                     (None, 'silu')])  # fmt: skip
    def test_group_norm(self, channels, groups, kind, out, activation):
        kind, out = kind_of(kind), ir.FLOAT if out is None else kind_of(out)
        x, rng = random_codes((2, channels, 5, 7), kind.signed, 6), np.random.default_rng(7)
        weight = rng.uniform(-2, 2, channels).astype(np.float32)
        bias = rng.uniform(-1, 1, channels).astype(np.float32)
        node = ir.GroupNorm('y', out, 'x', 'g', 'b', 1e-5, activation, groups=groups)
        shape = (2, groups, channels // groups, 5, 7)
        self.normalized(node, x, kind, weight, bias, (2, 3, 4), shape)

    def test_group_norm_of_one_value(self):
        """No variance at all: eps alone."""
        kind, x = kind_of(S8), np.full((1, 4, 3, 3), 77)
        node = ir.GroupNorm('y', kind_of((True, 3)), 'x', 'g', 'b', 1e-5, groups=2)
        ones = np.ones(4, np.float32)
        self.normalized(node, x, kind, ones, ones, (2, 3, 4), (1, 2, 2, 3, 3))

    @pytest.mark.parametrize('shape', [(2, 19, 3, 5), (7, 33), (2, 9, 24)])
    @pytest.mark.parametrize('kind', [(True, 3), MOVED])
    @pytest.mark.parametrize(('out', 'activation'), [((True, 2), 'identity'), (None, 'gelu')])
    def test_layer_norm(self, shape, kind, out, activation):
        kind, out = kind_of(kind), ir.FLOAT if out is None else kind_of(out)
        axis = 1 if len(shape) == 4 else len(shape) - 1
        x, rng = random_codes(shape, kind.signed, 8), np.random.default_rng(9)
        weight = rng.uniform(-2, 2, shape[axis]).astype(np.float32)
        bias = rng.uniform(-1, 1, shape[axis]).astype(np.float32)
        node = ir.LayerNorm('y', out, 'x', 'g', 'b', 1e-6, activation)
        self.normalized(node, x, kind, weight, bias, (axis,), shape)

    @pytest.mark.parametrize('kind', [(False, 0, 8), (False, 0, 64)])
    def test_offset_codes_pass_through(self, kind):
        """Concatenation, pooling, upsampling and flattening keep codes as they are."""
        kind = kind_of(kind)
        a, b = random_codes((2, 3, 6, 4), False, 1), random_codes((2, 5, 6, 4), False, 2)
        codes = {'a': (kind, a), 'b': (kind, b)}
        nodes = [
            ir.Concat('cat', kind, ('a', 'b')),
            ir.MaxPool('pool', kind, 'cat', (3, 3), (2, 2), (1, 1)),
            ir.Upsample('up', kind, 'pool', scale=(2.0, 2.0)),
            ir.Slice('slice', kind, 'up', (1, 0), (2, 3)),
            ir.Flatten('flat', kind, 'up'),
        ]
        found, _ = self.execute(nodes, {}, codes)
        whole = np.concatenate([a, b], 1)
        pooled = F.max_pool2d(torch.from_numpy(whole).double(), 3, 2, 1).long().numpy()
        up = pooled.repeat(2, 2).repeat(2, 3)
        self.check_codes(found['cat'], whole, kind)
        self.check_codes(found['pool'], pooled, kind)
        self.check_codes(found['up'], up, kind)
        self.check_codes(found['slice'], up[:, :, 1::2, ::3], kind)
        self.check_codes(found['flat'], up.reshape(2, -1), kind)
