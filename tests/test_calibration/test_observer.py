"""OctaveHistogram against brute force on the values that it does not keep."""

import math
from bisect import bisect_left
from fractions import Fraction

import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.calibration import observer
from mmclipq.calibration.observer import OctaveHistogram
from mmclipq.errors import ClipQError

OCTAVES = range(fp.EXPONENT_MIN, fp.EXPONENT_MAX + 1)


def seen(*batches, name: str = 'tensor') -> OctaveHistogram:
    histogram = OctaveHistogram(name)
    for batch in batches:
        histogram.update(torch.as_tensor(batch))
    return histogram


PARTS = 32
ENDS = [2.0 ** (e - 1) * (1 + part / PARTS) for e in OCTAVES for part in range(1, PARTS + 1)]


def brute_table(values: list[float]) -> torch.Tensor:
    """Sorts each value by comparison with the ends of the parts themselves."""
    table = torch.zeros(2, 3, len(ENDS), dtype=torch.float64)
    for value in values:
        size = abs(value)
        column = bisect_left(ENDS, size)
        table[int(value < 0), :, column] += torch.tensor([1, size, size * size], dtype=table.dtype)
    return table


def hurting_values() -> torch.Tensor:
    """Every end of a part with both neighbours, zeros, subnormals, both signs."""
    powers = torch.tensor(ENDS)
    below = torch.nextafter(powers, torch.tensor(0.0))
    above = torch.nextafter(powers[:-1], torch.tensor(math.inf))
    small = torch.tensor([0.0, -0.0, 1e-45, 1e-39, 2.0**-60])
    values = torch.cat([powers, below, above, small])
    return torch.cat([values, -values])


def brute_error(x: torch.Tensor, exponent: int, signed: bool = True, offset: int = 0) -> float:
    x = x.double()
    return float((fp.quantize(x, exponent, signed, offset=offset) - x).square().sum())


def test_table_equals_brute_force_at_every_octave_boundary():
    values = hurting_values()
    found, wanted = seen(values).table, brute_table(values.tolist())
    assert torch.equal(found[:, 0], wanted[:, 0])
    torch.testing.assert_close(found, wanted, rtol=1e-15, atol=0)  # squares have 48 bits


def test_deterministic_algorithms_are_enough():
    torch.use_deterministic_algorithms(True)
    try:
        found = seen(hurting_values())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found.table, seen(hurting_values()).table)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype):
    x = torch.tensor([0.0, 0.25, -0.75, 1.0, -1.5, 300.0], dtype=dtype)
    assert torch.equal(seen(x).table, brute_table(x.tolist()))


def test_updates_add_up_whatever_the_shapes():
    x = torch.arange(-60, 60).view(2, 3, 4, 5) / 16
    parts = seen(x[:1], x[1, 0], x[1, 1:].permute(2, 0, 1), torch.zeros(0, 3))
    assert torch.equal(parts.table, seen(x).table)
    assert parts.count == x.numel()


def test_blocks_add_up(monkeypatch):
    x = torch.arange(-60, 60).view(2, 3, 4, 5) / 16
    wanted = seen(x).table
    monkeypatch.setattr(observer, '_CPU_BLOCK', 7)
    assert torch.equal(seen(x).table, wanted)
    histogram = seen(x)
    with pytest.raises(ClipQError, match='1 NaN and 0 infinite of 121'):
        histogram.update(torch.cat([x.flatten(), torch.tensor([math.nan])]))
    assert torch.equal(histogram.table, wanted)


def test_the_observed_tensor_and_its_graph_are_left_alone():
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    histogram = seen(x * 1)
    assert not histogram.table.requires_grad
    assert x.tolist() == [1.0, -3.0]


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (math.nan, '1 NaN and 0 infinite of 3'),
        (math.inf, '0 NaN and 1 infinite of 3'),
        (-math.inf, '0 NaN and 1 infinite of 3'),
        (2.0**40 * 1.0001, 'exponent 41'),
        (-(2.0**100), 'exponent 101'),
    ],
)
def test_values_beyond_the_limits_are_refused_by_name_and_not_counted(bad, message):
    histogram = OctaveHistogram('input of neck')
    with pytest.raises(ClipQError, match=f'input of neck: found {message}'):
        histogram.update(torch.tensor([1.0, bad, 2.0]))
    assert histogram.count == 0


@pytest.mark.parametrize('percentile', [0.01, 12.5, 33.3, 50, 90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize('count', [1, 3, 7, 10, 300, 1000, 9999, 10000, 20000])
def test_percentile_is_exact_to_one_value(count, percentile):
    needed = math.ceil(Fraction(str(percentile)) * count / 100)
    x = torch.full((count,), 8.0)
    x[:needed] = 1.0
    assert seen(x).percentile_exponent(percentile) == 0
    x[needed - 1] = 8.0
    assert seen(x).percentile_exponent(percentile) == 3


def test_percentile_counts_zeros():
    x = torch.zeros(1000)
    x[:10] = 5.0
    assert seen(x).percentile_exponent(99) == fp.EXPONENT_MIN
    assert seen(x).percentile_exponent(99.01) == 3


@pytest.mark.parametrize('exponent', OCTAVES)
def test_full_percentile_is_the_holding_exponent(exponent):
    power = 2.0**exponent
    assert seen([power, 0.0]).percentile_exponent(100) == exponent
    assert seen([-power]).percentile_exponent(100) == fp.holding_exponent(power)
    if exponent < fp.EXPONENT_MAX:
        above = torch.nextafter(torch.tensor(power), torch.tensor(math.inf))
        assert seen(above).percentile_exponent(100) == exponent + 1


def test_percentile_of_nothing_is_refused():
    with pytest.raises(ClipQError, match='input of fc: found no values'):
        seen(torch.zeros(0), name='input of fc').percentile_exponent(100)


@pytest.mark.parametrize('bad', [0, -1, 100.001, math.nan])
def test_percentiles_outside_0_to_100_are_refused(bad):
    with pytest.raises(ClipQError, match=f'percentile: found {bad}'):
        seen([1.0]).percentile_exponent(bad)


KINDS = pytest.mark.parametrize(
    ('signed', 'offset'), [(True, 0), (False, 0), (False, 8), (False, 16), (False, 32), (False, 64)]
)


@KINDS
@pytest.mark.parametrize('exponent', [-20, -3, 0, 3, 20])
def test_squared_error_is_exact_where_values_saturate_or_vanish(exponent, signed, offset):
    step = fp.step(exponent, signed)
    beyond = torch.tensor([1.5, 2.0, 2.5, 1000.0, -1.25, -2.0, -600.0]) * 2.0**exponent
    vanishing = torch.tensor([0.5, 0.25, 0.375, 2.0**-10, 0.0]) * step
    for x in (beyond, vanishing, torch.cat([beyond, vanishing, -vanishing])):
        wanted = brute_error(x, exponent, signed, offset)
        assert seen(x).squared_error(exponent, signed, offset) == wanted
    wanted = float(vanishing.double().square().sum())
    assert brute_error(vanishing, exponent, signed, offset) == wanted


def test_a_value_above_half_a_step_no_longer_vanishes():
    step = fp.step(3)
    assert seen([step / 2]).squared_error(3) == step**2 / 4
    assert seen([step / 2 * 1.01]).squared_error(3) == step**2 / 12


def test_the_lowest_code_has_no_step_more():
    assert brute_error(torch.tensor([-10.0]), 3) == 2.0**2
    assert seen([-10.0]).squared_error(3) == 2.0**2


def test_values_below_zero_are_lost_without_sign_or_offset():
    assert seen([-0.5, 1.0]).squared_error(3, False) == 0.5**2 + fp.step(3, False) ** 2 / 12


def test_reach_names_both_ends():
    assert seen([3.0, -0.25, 0.0]).reach() == (3.0, 0.25)
    assert seen([1.01]).reach() == (1 + 1 / 32, 0.0)


@KINDS
@pytest.mark.parametrize('exponent', range(-6, 4))
@pytest.mark.parametrize('kind', ['normal', 'exponential', 'uniform'])
def test_squared_error_is_within_three_percent_of_the_real_one(kind, exponent, signed, offset):
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(50_000)
    getattr(x, {'normal': 'normal_', 'uniform': 'uniform_'}.get(kind, 'exponential_'))(
        generator=generator
    )
    x = x.abs()
    if offset or signed:
        x[::3] *= -0.2
    real = brute_error(x, exponent, signed, offset)
    # Uniform values up to the limit reach 2.7 %: those above the largest code saturate.
    assert abs(seen(x).squared_error(exponent, signed, offset) - real) <= 0.03 * real
