"""The integer arithmetic once more, written with numpy alone: what backends are compared with.

Products are added in int64; the epilogue runs step by step in float32, where nothing is fused.
A type is anything with an ``exponent``, ``signed`` and an ``offset``.
"""

import itertools

import numpy as np
from oracle_smooth import smooth_activation


def limits(signed):
    return (-128, 127) if signed else (0, 255)


def step_of(kind):
    return np.float32(2.0 ** (kind.exponent - (7 if kind.signed else 8)))


def random_codes(shape, signed, seed):
    """Random codes with both ends of the range among them."""
    low, high = limits(signed)
    rng = np.random.default_rng(seed)
    codes = rng.integers(low, high + 1, shape)
    codes.flat[0], codes.flat[-1] = low, high
    return codes


def expected_codes(v, kind):
    """Float32 values to codes: scaled by a power of two, half to even, offset, saturated."""
    scaled = np.rint(v.astype(np.float32) / step_of(kind)) + np.float32(kind.offset)
    return np.clip(scaled, *limits(kind.signed)).astype(np.int64)


def values_of(codes, kind):
    """Float32 values that codes stand for."""
    return (codes - kind.offset).astype(np.float32) * step_of(kind)


def expected_conv_sum(x, w, stride, padding, dilation, groups):
    """int64 convolution of codes, one tap at a time."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    rows, cols = ((x.shape[2 + i] - reach[i]) // stride[i] + 1 for i in (0, 1))
    outs, depth = w.shape[0] // groups, w.shape[1]
    acc = np.zeros((x.shape[0], w.shape[0], rows, cols), np.int64)
    for g, r, s in itertools.product(range(groups), range(w.shape[2]), range(w.shape[3])):
        top, left = r * dilation[0], s * dilation[1]
        taps = x[:, g * depth : (g + 1) * depth, top:, left:]
        taps = taps[:, :, : (rows - 1) * stride[0] + 1 : stride[0]]
        taps = taps[:, :, :, : (cols - 1) * stride[1] + 1 : stride[1]]
        part = w[g * outs : (g + 1) * outs, :, r, s]
        acc[:, g * outs : (g + 1) * outs] += np.einsum('kc,nchw->nkhw', part, taps)
    return acc


def expected_activation(v, activation, slope):
    if activation == 'relu':
        return np.maximum(v, np.float32(0))
    if activation == 'relu6':
        return np.clip(v, np.float32(0), np.float32(6))
    if activation == 'leaky_relu':
        return np.where(v > 0, v, v * np.float32(slope))
    if activation == 'identity':
        return v
    return smooth_activation(v, activation, slope)


def expected_epilogue(acc, m, b, activation, slope, residual=None, residual_last=False):
    """Float32 result of section 3 of the contract; ``residual`` holds values."""
    shape = (1, -1) + (1,) * (acc.ndim - 2)
    v = acc.astype(np.float32) * m.reshape(shape)
    v = v + b.reshape(shape)
    if residual is not None and not residual_last:
        v = v + residual
    v = expected_activation(v, activation, slope)
    if residual is not None and residual_last:
        v = v + residual
    assert v.dtype == np.float32
    return v


def spread(acc, kind, seed):
    """Multipliers and biases that scatter the results over the codes and beyond both ends."""
    rng = np.random.default_rng(seed)
    channels = acc.shape[1]
    peak = np.abs(acc).max(axis=tuple(a for a in range(acc.ndim) if a != 1)) + 1
    # 300 steps at the peak: saturates on both sides.
    m = (300 * step_of(kind) / peak * rng.uniform(0.7, 1.3, channels)).astype(np.float32)
    return m, (rng.uniform(-60, 60, channels) * step_of(kind)).astype(np.float32)


def _axis(start, end, bins, pixels, scale, sampling_ratio, aligned):
    """Per bin, the samples along one axis as (low, high, weight below, weight above) or None."""
    f = np.float32
    offset = f(0.5) if aligned else f(0)
    start, end = f(start * f(scale)) - offset, f(end * f(scale)) - offset
    side = end - start
    if not aligned:
        side = max(side, f(1))
    width = f(side / f(bins))
    count = sampling_ratio or max(int(np.ceil(width)), 0)
    result = []
    for p in range(bins):
        samples = []
        for i in range(count):
            at = f(start + f(f(p) * width)) + f(f(f(i + 0.5) * width) / f(count))
            if at < -1 or at > pixels:
                samples.append(None)
                continue
            at = max(at, f(0))
            low = int(at)
            if low >= pixels - 1:
                samples.append((pixels - 1, pixels - 1, f(1), f(0)))
            else:
                samples.append((low, low + 1, f(1) - f(at - f(low)), f(at - f(low))))
        result.append(samples)
    return result


def expected_roi_align(x, rois, scale, output_size, sampling_ratio, aligned):
    """Average of bilinear samples of float32 ``x`` (N, C, H, W), one region and bin at a time."""
    options = (scale, sampling_ratio, aligned)
    result = np.zeros((len(rois), x.shape[1], *output_size), np.float32)
    for k, (image, x1, y1, x2, y2) in enumerate(rois):
        ys = _axis(y1, y2, output_size[0], x.shape[2], *options)
        xs = _axis(x1, x2, output_size[1], x.shape[3], *options)
        for (p, rows), (q, columns) in itertools.product(enumerate(ys), enumerate(xs)):
            total = np.zeros(x.shape[1], np.float32)
            for row, column in itertools.product(rows, columns):
                if row is None or column is None:
                    continue
                (y_low, y_high, hy, ly), (x_low, x_high, hx, lx) = row, column
                plane = x[int(image)]
                sample = hy * hx * plane[:, y_low, x_low]
                sample = sample + hy * lx * plane[:, y_low, x_high]
                sample = sample + ly * hx * plane[:, y_high, x_low]
                sample = sample + ly * lx * plane[:, y_high, x_high]
                total = total + sample
            result[k, :, p, q] = total / np.float32(max(len(rows) * len(columns), 1))
    return result
