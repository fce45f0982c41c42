"""Products that hurt, for the emulated kernels and for those on a GPU."""

import torch

from mmclipq.backends import build_backend
from mmclipq.graph import ir

S8, U8 = ir.TensorType(0), ir.TensorType(0, signed=False)
TO_8 = ir.TensorType(3, signed=False)  # holds the upper bound of relu6


def offset(code):
    return ir.TensorType(0, signed=False, offset=code)


# Name: input (N, C, H, W) and type, outputs, kernel, geometry, result, activation, residual.
CASES = {
    'pixels and outputs that fill no tile': dict(x=(1, 33, 9, 7), outputs=80, kernel=1),
    'kernel, padding and two images': dict(
        x=(2, 80, 7, 9), outputs=35, kernel=3, padding=(1, 1), activation='leaky_relu',
        residual=S8, residual_last=True,
    ),
    'stride and dilation, residual first': dict(
        x=(1, 64, 13, 10), outputs=64, kernel=3, padding=(2, 1), stride=(2, 1), dilation=(1, 2),
        activation='relu', residual=U8, out=U8,
    ),
    'a head of 255 channels in float32': dict(x=(1, 96, 6, 6), outputs=255, kernel=1, out=ir.FLOAT),
    'relu6 of uint8 codes': dict(x=(1, 20, 8, 8), kind=U8, outputs=40, kernel=3, padding=(1, 1),
                                 activation='relu6', out=TO_8, gain=4),
    'many steps of depth': dict(x=(1, 144, 5, 5), kind=U8, outputs=48, kernel=3, padding=(1, 1)),
    'a sum of a smaller map': dict(x=(2, 16, 9, 11), outputs=32, kernel=1, upsampled=(4, 6)),
    'an image': dict(x=(1, 3, 21, 19), outputs=34, kernel=7, padding=(3, 3), stride=(2, 2)),
    'codes with offsets': dict(
        x=(2, 24, 7, 9), kind=offset(16), outputs=40, kernel=3, padding=(1, 2), stride=(2, 1),
        out=offset(64), activation='leaky_relu', residual=offset(8),
    ),
    'an image with an offset': dict(x=(1, 3, 9, 12), kind=offset(64), outputs=20, kernel=3,
                                    padding=(1, 1), out=ir.FLOAT),
    'a smooth activation': dict(x=(1, 40, 6, 7), outputs=72, kernel=1, activation='silu',
                                out=offset(32), residual=S8, residual_last=True),
    'a smooth activation in float32': dict(x=(1, 18, 5, 7), kind=offset(8), outputs=33, kernel=3,
                                           activation='gelu', residual=U8, out=ir.FLOAT),
    'one channel': dict(x=(1, 1, 9, 12), kind=U8, outputs=16, kernel=3, padding=(0, 2)),
}  # fmt: skip


def graph_of(
    x, outputs, kernel, kind=S8, out=S8, activation='identity', residual=None, upsampled=None,
    gain=0, seed=0, **geometry,
):  # fmt: skip
    """A graph of one convolution, and inputs with extremes, ties and saturation."""
    g = torch.Generator().manual_seed(seed)
    low, high = (-128, 127) if kind.signed else (0, 255)
    codes = torch.randint(low, high + 1, x, generator=g)
    codes.flatten()[:: 7] = low if kind.signed else high  # fmt: skip
    weight = torch.randint(-128, 128, (outputs, x[1], kernel, kernel), generator=g)
    weight[::5] = -128  # sums beyond what float32 tells apart, once there is enough depth
    depth = x[1] * kernel * kernel
    # Powers of two, so that results lie on half steps; large ones, so that they saturate.
    exponent = -(depth.bit_length() // 2) - torch.randint(13, 16, (outputs,), generator=g)
    multiplier = torch.ldexp(torch.ones(outputs), exponent.int() + gain)
    multiplier[::3] *= 1 + torch.rand(len(multiplier[::3]), generator=g)
    constants = {
        'w': weight.to(torch.int8),
        'e': torch.zeros(outputs, dtype=torch.int32),
        'm': multiplier,
        'b': torch.randint(-64, 64, (outputs,), generator=g) / 256,
    }
    nodes = [ir.Input('in', ir.FLOAT), ir.Quantize('x', kind, 'in')]
    inputs = [(codes - kind.offset).float() * 2.0**kind.step_exponent]
    options = dict(activation=activation, slope=0.125, **geometry)
    name = None
    if upsampled is not None:
        nodes += [ir.Input('small', ir.FLOAT), ir.Quantize('s', S8, 'small')]
        nodes.append(ir.Upsample('r', S8, 's', like='x'))
        inputs.append(torch.randint(-128, 128, (x[0], outputs, *upsampled), generator=g) / 128)
        name = 'r'
    elif residual is not None:
        plain = ir.Conv('p', residual, 'x', 'w', 'e', 'm', 'b', **geometry)
        nodes.append(plain)
        name = 'p'
    nodes.append(ir.Conv('y', out, 'x', 'w', 'e', 'm', 'b', residual=name, **options))
    return ir.Int8Graph(tuple(nodes), ir.Ref('y'), constants), inputs


def differing(backend, case, device='cpu', repeat=1):
    """How many results of ``backend`` are not the reference's, or not the same again."""
    graph, inputs = graph_of(**CASES[case])
    wanted = build_backend('reference', graph).run(*inputs)
    made = build_backend(backend, graph, None, device)
    found = [made.run(*(t.to(device) for t in inputs)).cpu() for _ in range(repeat)]
    return sum(int((result != wanted).sum()) for result in found)
