"""Percentile and divergence from streamed statistics against the values themselves."""

import math

import numpy as np
import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.calibration.observer import OctaveHistogram
from mmclipq.calibration.options import METHODS, CalibrationOptions
from mmclipq.calibration.range_search import OFFSETS, activation_range, candidates
from mmclipq.errors import ClipQError


def seen(*parts: torch.Tensor) -> OctaveHistogram:
    histogram = OctaveHistogram()
    for part in parts:
        histogram.update(part)
    return histogram


def normal(count: int = 20_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('percentile', [100, 99.99, 99.9, 99, 50])
@pytest.mark.parametrize('offsets', [(), OFFSETS])
def test_percentile_takes_the_smallest_step_that_holds_the_share(percentile, offsets):
    x = torch.nn.functional.silu(normal() * 3)
    found = activation_range([seen(x)], True, 'percentile', None, offsets, percentile)

    def share(range_):
        low, high = fp.code_range(range_.signed)
        step = fp.step(range_.exponent, range_.signed)
        # Values of up to one step beyond the largest code count as held.
        above = (x > (high + 1 - range_.offset) * step).sum()
        return 100 * float(above + (x < (low - range_.offset) * step).sum()) / len(x)

    assert share(found) <= 100 - percentile
    step = fp.step(found.exponent, found.signed)
    finer = [r for r in candidates([seen(x)], True, None, offsets)
             if fp.step(r.exponent, r.signed) < step]  # fmt: skip
    assert finer
    assert all(share(range_) > 100 - percentile for range_ in finer)


def test_percentile_holds_the_share_of_each_tied_tensor():
    quiet, loud = normal(2_000, 1) / 64, torch.cat([normal(), torch.full((20,), 300.0)])
    alone = activation_range([seen(quiet)], True, 'percentile', percentile=99.9)
    together = activation_range([seen(quiet), seen(loud)], True, 'percentile', percentile=99.9)
    assert alone.exponent < together.exponent < 9
    assert together == activation_range([seen(loud)], True, 'percentile', percentile=99.9)


def direct_divergence(x: torch.Tensor, range_) -> float:
    """The same from the values: parts of 1/32 octave, cells of one code each."""
    step = fp.step(range_.exponent, range_.signed)
    low, high = fp.code_range(range_.signed)
    low, high = low - range_.offset, high - range_.offset
    values = x.double().numpy()
    values = values[np.abs(values) > 2.0**fp.EXPONENT_MIN]
    octave = np.ceil(np.log2(np.abs(values)))
    number = np.ceil((np.abs(values) / 2.0 ** (octave - 1) - 1) * 32 - 1e-9)
    ends = 2.0 ** (octave - 1) * (1 + number / 32)
    parts = {}
    for sign, end, width in zip(np.sign(values), ends, 2.0 ** (octave - 1) / 32, strict=True):
        limit = (high + 1) * step if sign > 0 else -low * step
        clipped = end > limit * (1 + 1e-12)
        key = (sign, min(end, limit), None if clipped else width)
        parts[key] = parts.get(key, 0) + 1
    inside = {key[:2]: [count, key[2]] for key, count in parts.items() if key[2] is not None}
    cells = {}
    for (sign, end), (count, width) in inside.items():
        code = sign * math.floor((end - width / 2) / step + 0.5)
        cell = cells.setdefault(code, [0, 0])
        cell[0] += count
        cell[1] += width
    kept = sum(count for count, _ in inside.values())
    wanted = {key: count for key, (count, _) in inside.items()}
    for (sign, end, width), count in parts.items():
        if width is None:
            wanted[sign, end] = wanted.get((sign, end), 0) + count
    total = 0.0
    for (sign, end), count in wanted.items():
        spread = 0.5
        if (sign, end) in inside:
            width = inside[sign, end][1]
            mass, whole = cells[sign * math.floor((end - width / 2) / step + 0.5)]
            spread = mass * width / whole
        p = count / len(values)
        total += p * math.log(p / (spread / kept))
    return total


@pytest.mark.parametrize('offset', [0, 32])
@pytest.mark.parametrize('exponent', [4, 1, -1])
def test_divergence_is_that_of_the_values(exponent, offset):
    x = torch.cat([normal(3_000) * 2, normal(3_000, 1) / 32, torch.zeros(500)])
    (range_,) = [r for r in candidates([seen(x)], True, None, OFFSETS)
                 if (r.exponent, r.offset, r.signed) == (exponent, offset, not offset)]  # fmt: skip
    found = seen(x[:1000], x[1000:]).divergence(*range_)
    assert found == pytest.approx(direct_divergence(x, range_), rel=1e-6)
    assert found > 0


def test_divergence_of_what_the_codes_hold_exactly_is_zero():
    x = torch.arange(-128, 128).float() / 64
    assert seen(x).divergence(1, True, 0) == 0
    assert seen(torch.zeros(10)).divergence(1, True, 0) == 0
    assert seen(x).divergence(0, True, 0) > 0.1  # half of them clipped
    assert seen(x).divergence(7, True, 0) > 0.05  # many in one code


def test_divergence_prefers_the_crowd_to_a_lone_outlier():
    x = torch.cat([normal(), torch.tensor([200.0])])
    by_method = {m: activation_range([seen(x)], True, m).exponent for m in ('max', 'mse', 'kl')}
    assert by_method['kl'] == 2
    assert by_method['max'] == 8
    assert by_method['kl'] < by_method['mse']


@pytest.mark.parametrize('method', METHODS)
def test_upper_binds_every_method(method):
    for upper in (-40, -3, 1):
        found = activation_range([seen(normal() * 100)], True, method, upper, OFFSETS)
        assert found.exponent <= upper


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'method': 'entropy'}, "method 'entropy', wanted one of"),
        ({'percentile': 0}, 'percentile: found 0, wanted one above 0'),
        ({'percentile': 100.5}, 'percentile: found 100.5'),
        ({'percentile': True}, 'percentile: found True'),
        ({'offsets': 1}, 'offsets: found 1, wanted True or False'),
        ({'bias_correction': 'yes'}, "bias_correction: found 'yes'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ClipQError, match=message):
        CalibrationOptions(**options)


def test_options_of_a_section():
    section = {'method': 'kl', 'calib_images': 3}
    assert CalibrationOptions.of(section) == CalibrationOptions('kl')
    assert CalibrationOptions.of(section, method=None, percentile=99.0) == CalibrationOptions(
        'kl', 99.0
    )
    assert CalibrationOptions.of(None, method='max').method == 'max'
