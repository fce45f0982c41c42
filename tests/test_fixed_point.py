"""Power-of-two arithmetic: codes at mid-points and limits, exponents, gradients, errors."""

import doctest
import math
from fractions import Fraction

import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.errors import ClipQError

EXPONENTS = (-40, -39, -7, -3, 0, 3, 7, 39, 40)
SIGNED = pytest.mark.parametrize('signed', [True, False], ids=['int8', 'uint8'])


def exact_codes(x: torch.Tensor, exponent: int, signed: bool) -> torch.Tensor:
    """Codes by rational arithmetic; round() of a Fraction goes half to even."""
    low, high = (-128, 127) if signed else (0, 255)
    step = Fraction(2) ** (exponent - (7 if signed else 8))
    codes = [min(max(round(Fraction(value) / step), low), high) for value in x.flatten().tolist()]
    return torch.tensor(codes, dtype=torch.int8 if signed else torch.uint8).view(x.shape)


def hurting_values(exponent: int, signed: bool) -> torch.Tensor:
    """Codes, mid-points and their float32 neighbours, inside, at and beyond the range."""
    step = 2.0 ** (exponent - (7 if signed else 8))
    halves = torch.arange(-600, 601, dtype=torch.float64) / 2
    values = (halves * step).float()
    up = torch.nextafter(values, torch.tensor(math.inf))
    down = torch.nextafter(values, torch.tensor(-math.inf))
    extremes = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38])
    return torch.cat([values, up, down, extremes])


def test_doctests_run():
    result = doctest.testmod(fp)
    assert result.attempted >= 3
    assert result.failed == 0


@SIGNED
@pytest.mark.parametrize('exponent', EXPONENTS)
def test_encode_equals_rational_arithmetic(exponent, signed):
    x = hurting_values(exponent, signed)
    codes = fp.encode(x, exponent, signed)
    assert codes.dtype == fp.code_dtype(signed)
    assert torch.equal(codes, exact_codes(x, exponent, signed))


@SIGNED
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_encode_takes_other_float_types(dtype, signed):
    x = hurting_values(1, signed)[:-2].to(dtype)
    assert torch.equal(fp.encode(x, 1, signed), exact_codes(x, 1, signed))


def test_half_values_beyond_the_scaled_range_saturate():
    x = torch.tensor([60000.0, -60000.0, 2.0**-12], dtype=torch.float16)
    assert fp.encode(x, -10).tolist() == [127, -128, 32]


def test_mid_points_round_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5, -128.5])
    assert fp.encode(x, 7).tolist() == [0, 2, 2, 0, -2, -2, 126, 127, -128, -128]
    x = torch.tensor([0.5, 1.5, 2.5, 253.5, 254.5, 255.5, -0.5, -1.5])
    assert fp.encode(x, 8, signed=False).tolist() == [0, 2, 2, 254, 254, 255, 0, 0]


@SIGNED
@pytest.mark.parametrize('exponent', EXPONENTS)
def test_all_256_codes_survive_decode_and_encode(exponent, signed):
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes.view(torch.int8) if signed else codes
    values = fp.decode(codes, exponent)
    assert values.dtype == torch.float32
    assert [Fraction(v) for v in values.tolist()] == [
        c * Fraction(2) ** (exponent - (7 if signed else 8)) for c in codes.tolist()
    ]
    assert torch.equal(fp.encode(values, exponent, signed), codes)
    assert torch.equal(fp.quantize(values, exponent, signed), values)


@SIGNED
@pytest.mark.parametrize('exponent', EXPONENTS)
def test_decode_is_within_half_a_step_inside_and_at_the_end_outside(exponent, signed):
    step = fp.step(exponent, signed)
    low, high = (code * step for code in fp.code_range(signed))
    x = hurting_values(exponent, signed).double()
    back = fp.decode(fp.encode(x, exponent, signed), exponent, dtype=torch.float64)
    inside = (x >= low) & (x <= high)
    assert ((back - x)[inside].abs() <= step / 2).all()
    assert (back[x > high] == high).all()
    assert (back[x < low] == low).all()
    assert (x > high).any()
    assert (x < low).any()


@SIGNED
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_quantize_is_decode_of_encode_and_idempotent(dtype, signed):
    x = hurting_values(-3, signed)[:-2].to(dtype)
    once = fp.quantize(x, -3, signed)
    assert once.dtype == dtype
    assert torch.equal(once, fp.decode(fp.encode(x, -3, signed), -3, dtype=dtype))
    assert torch.equal(fp.quantize(once, -3, signed), once)


@SIGNED
@pytest.mark.parametrize(
    ('shape', 'axis'),
    [((1, 5), 0), ((3, 7, 2), 1), ((5, 255), -1), ((255, 3, 3, 3), 0), ((2, 3, 1, 1), 1)],
)
def test_per_channel_equals_each_channel_alone(shape, axis, signed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 4
    exponents = torch.arange(shape[axis], dtype=torch.int32) % 9 - 4
    codes = fp.encode(x, exponents, signed, axis)
    values = fp.decode(codes, exponents, axis)
    assert torch.equal(fp.quantize(x, exponents, signed, axis), values)
    for channel, exponent in enumerate(exponents.tolist()):
        alone = fp.encode(x.select(axis, channel), exponent, signed)
        assert torch.equal(codes.select(axis, channel), alone)
        assert torch.equal(values.select(axis, channel), fp.decode(alone, exponent))


def test_wrong_number_of_exponents_is_refused():
    with pytest.raises(ClipQError, match=r'found \(3,\) exponents for axis 0 .* each of its 4'):
        fp.encode(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int32), axis=0)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    x = torch.tensor([1.0, bad, 2.0])
    counts = '1 NaN and 0' if math.isnan(bad) else '0 NaN and 1'
    with pytest.raises(ClipQError, match=f'neck.weight: found {counts} infinite of 3'):
        fp.encode(x, 3, name='neck.weight')


@pytest.mark.parametrize('exponent', range(-40, 41))
def test_range_exponent_of_every_power_of_two(exponent):
    assert fp.range_exponent(2.0**exponent) == exponent
    assert fp.holding_exponent(2.0**exponent) == exponent


@pytest.mark.parametrize('bad', [0, -8, 6, 0.1, math.nan, math.inf, 2.0**41, 2.0**-41])
def test_ranges_that_are_no_power_of_two_within_the_limits_are_refused(bad):
    with pytest.raises(ClipQError, match='my_range: found'):
        fp.range_exponent(bad, 'my_range')


def test_error_names_the_neighbours():
    with pytest.raises(ClipQError, match='found 0.1, .* the nearest are 0.0625 and 0.125'):
        fp.range_exponent(0.1)


@pytest.mark.parametrize('bad', [41, -41, 2.5, True, None, '3', math.nan, math.inf])
def test_exponents_that_are_no_integer_within_the_limits_are_refused(bad):
    with pytest.raises(ClipQError, match='conv1: found'):
        fp.check_exponent(bad, 'conv1')


@pytest.mark.parametrize('exponent', [-40, 0, 40])
def test_exponent_limits_are_allowed(exponent):
    checked = fp.check_exponent(float(exponent))
    assert (checked, type(checked)) == (exponent, int)


@pytest.mark.parametrize('exponent', range(-39, 40))
def test_holding_exponent_next_to_a_power_of_two(exponent):
    power = 2.0**exponent
    assert fp.holding_exponent(math.nextafter(power, math.inf)) == exponent + 1
    assert fp.holding_exponent(math.nextafter(power, 0)) == exponent


@pytest.mark.parametrize('magnitude', [0.0, 1e-45, 1e-20, 2.0**-41, 2.0**-40])
def test_magnitudes_below_the_smallest_range_get_the_smallest(magnitude):
    assert fp.holding_exponent(magnitude) == fp.EXPONENT_MIN


@pytest.mark.parametrize('magnitude', [2.0**40 * 1.001, 1e300, math.inf, math.nan])
def test_magnitudes_above_the_largest_range_are_refused(magnitude):
    with pytest.raises(ClipQError, match='magnitude: found'):
        fp.holding_exponent(magnitude)


@pytest.mark.parametrize('dtype', [torch.int8, torch.int32, torch.int64])
def test_power_of_two_is_exact_over_its_whole_range(dtype):
    exponents = torch.arange(-126, 128, dtype=dtype)
    powers = fp.power_of_two(exponents)
    assert powers.dtype == torch.float32
    assert powers.tolist() == [math.ldexp(1.0, e) for e in range(-126, 128)]


def at_the_limits(exponent: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    limit = torch.tensor(2.0**exponent, dtype=dtype)
    ends = limit, torch.nextafter(limit, limit * 2), torch.nextafter(limit, limit * 0)
    return torch.stack([*ends, *(-end for end in ends), limit * 0, limit * 4]).requires_grad_()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('exponent', EXPONENTS)
def test_clip_and_its_gradient_at_the_limit(exponent, dtype):
    x = at_the_limits(exponent, dtype)
    y = fp.clip(x, exponent)
    (3 * y).sum().backward()
    assert x.grad.tolist() == [3, 0, 3, 3, 0, 3, 3, 0]
    assert torch.equal(y[[0, 1, 7]], x[[0, 0, 0]])
    assert torch.equal(y[[3, 4]], x[[3, 3]])


@SIGNED
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('exponent', EXPONENTS)
def test_fake_quantize_and_its_gradient_at_the_limit(exponent, dtype, signed):
    x = at_the_limits(exponent, dtype)
    y = fp.fake_quantize(x, exponent, signed)
    (3 * y).sum().backward()
    assert torch.equal(y, fp.quantize(x.detach(), exponent, signed))
    negative = 3 if signed else 0
    assert x.grad.tolist() == [3, 0, 3, negative, 0, negative, 3, 0]


def test_fake_quantize_per_channel_gradient():
    x = torch.tensor([[1.0, 1.5, -1.0], [1.0, 1.5, -2.5]], requires_grad=True)
    fp.fake_quantize(x, torch.tensor([0, 1]), axis=0).sum().backward()
    assert x.grad.tolist() == [[1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize('shape', [(), (0,), (0, 3, 2), (1,)])
def test_scalars_and_empty_tensors(shape):
    x = torch.full(shape, 0.75)
    assert fp.encode(x, 0).shape == shape
    assert torch.equal(fp.quantize(x, 0), x)
