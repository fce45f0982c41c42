"""Choice of exponents against the squared error of every exponent there is."""

import math

import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.calibration.observer import OctaveHistogram
from mmclipq.calibration.range_search import OFFSETS, activation_range, weight_exponents
from mmclipq.errors import ClipQError

ALL = range(fp.EXPONENT_MIN, fp.EXPONENT_MAX + 1)
SIGNED = pytest.mark.parametrize('signed', [True, False], ids=['int8', 'uint8'])


def seen(x: torch.Tensor) -> OctaveHistogram:
    histogram = OctaveHistogram()
    histogram.update(x)
    return histogram


def real_errors(rows: torch.Tensor, exponents, signed: bool = True) -> torch.Tensor:
    """float64 squared error of each row at each exponent, of shape (exponents, rows)."""
    rows = rows.double()
    errors = [fp.quantize(rows, e, signed).sub_(rows).square_().sum(1) for e in exponents]
    return torch.stack(errors)


def with_outlier(count: int, scale: float, seed: int = 0) -> torch.Tensor:
    """Half-normal values, and one just beyond the range that holds the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator).abs() * scale
    x[0] = 1.02 * 2.0 ** fp.holding_exponent(float(x.max()))
    return x


@SIGNED
@pytest.mark.parametrize('scale', [1e-6, 0.03, 1.0, 7.0, 1e6])
def test_mse_finds_the_exponent_of_least_real_error(scale, signed):
    x = with_outlier(5_000, scale)
    errors = real_errors(x[None], ALL, signed)[:, 0]
    best = ALL[int(errors.argmin())]
    assert activation_range([seen(x)], signed) == (best, signed, 0)
    assert best < activation_range([seen(x)], signed, 'max').exponent


@SIGNED
@pytest.mark.parametrize(('largest', 'exponent'), [(8.0, 3), (8.001, 4), (7.9, 3), (0.01, -6)])
def test_max_holds_the_largest_value(largest, exponent, signed):
    x = torch.tensor([0.0, largest / 1000, largest])
    assert activation_range([seen(x)], signed, 'max') == (exponent, signed, 0)
    assert activation_range([seen(x), seen(x * 16)], signed, 'max').exponent == exponent + 4


@pytest.mark.parametrize('method', ['mse', 'max'])
@pytest.mark.parametrize('upper', [-40, -30, -3, 0])
def test_upper_is_never_exceeded(upper, method):
    x = with_outlier(10_000, 1e3)
    assert activation_range([seen(x)], True, method, upper).exponent == upper
    assert activation_range([seen(x)], True, method, 40) == activation_range(
        [seen(x)], True, method
    )


@SIGNED
def test_tied_tensors_share_the_exponent_of_least_relative_error(signed):
    tensors = [with_outlier(5_000, 1.0), with_outlier(2_000, 0.05, 1), torch.zeros(100)]
    relative = sum(
        real_errors(x[None], ALL, signed)[:, 0] / x.double().square().sum() for x in tensors[:2]
    )
    together = activation_range([seen(x) for x in tensors], signed).exponent
    assert together == ALL[int(relative.argmin())]
    assert together < activation_range([seen(tensors[0])], signed).exponent
    assert together > activation_range([seen(tensors[1])], signed).exponent


def test_an_unknown_method_is_refused():
    with pytest.raises(ClipQError, match="method 'entropy', wanted one of .*mse.*max"):
        activation_range([seen(torch.ones(1))], True, 'entropy')


def test_nothing_observed_is_refused_by_name():
    with pytest.raises(ClipQError, match='neck.0: found no values'):
        activation_range([OctaveHistogram('neck.0')], True)


def test_all_zeros_get_the_smallest_range():
    assert activation_range([seen(torch.zeros(5))], True).exponent == fp.EXPONENT_MIN


@pytest.mark.parametrize('upper', [None, 40, 0, -3, -7, -40])
@pytest.mark.parametrize(
    'shape', [(1, 5), (3, 7, 3, 3), (255, 16, 1, 1), (16, 2000), (4, 1), (8, 1, 3, 3)]
)
def test_weight_exponents_have_the_least_error_of_all(shape, upper):
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(-8, 3, shape[0]).exp2().view(-1, *[1] * (len(shape) - 1))
    weight = torch.randn(shape, generator=generator) * spread
    exponents = weight_exponents(weight, upper)
    assert exponents.dtype == torch.int32
    assert exponents.shape == shape[:1]
    allowed = [e for e in ALL if upper is None or e <= upper]
    errors = real_errors(weight.flatten(1), allowed)
    chosen = errors[exponents.long() - fp.EXPONENT_MIN, torch.arange(shape[0])]
    assert torch.equal(chosen, errors.amin(0))
    if upper is not None:
        assert int(exponents.max()) <= upper


def test_a_weight_at_the_top_of_its_range_gets_a_wider_one():
    assert weight_exponents(torch.tensor([[1.0, 0.5]]), None).tolist() == [1]
    assert weight_exponents(torch.tensor([[-1.0, 1 / 128]]), None).tolist() == [0]


def test_a_lone_outlier_is_clipped():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 20_000, generator=generator) * 0.5
    weight[1, 0] = 2 * weight[1].abs().max() // 1 + 0.05
    plain, outlier = weight_exponents(weight, None).tolist()
    assert fp.holding_exponent(float(weight[1].abs().max())) > outlier
    assert plain <= outlier


@pytest.mark.parametrize('scale', [0.0, 1e-45, 1e-30, 2.0**-41])
def test_dead_channels_do_not_stop_the_others(scale):
    weight = torch.tensor([[0.3, -0.7], [scale, -scale]])
    alone = weight_exponents(weight[:1], None)
    both = weight_exponents(weight, None)
    assert both[0] == alone[0]
    assert fp.EXPONENT_MIN <= int(both[1]) <= fp.EXPONENT_MIN + 1


def test_a_magnitude_beyond_the_limits_is_refused():
    with pytest.raises(ClipQError, match='found exponent 41'):
        weight_exponents(torch.tensor([[2.0**41]]), None)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad):
    with pytest.raises(ClipQError, match='backbone.conv1.weight: found'):
        weight_exponents(torch.tensor([[1.0, bad]]), None, 'backbone.conv1.weight')


def tailed(count: int = 20_000) -> torch.Tensor:
    """What SiLU gives: a long side above zero and a short one below."""
    return torch.nn.functional.silu(
        torch.randn(count, generator=torch.Generator().manual_seed(1)) * 2
    )


def test_a_short_side_below_zero_takes_the_best_offset():
    x = tailed()
    found = activation_range([seen(x)], True, offsets=OFFSETS)

    def error(kind):
        return float((fp.quantize(x, *kind[:2], offset=kind[2]) - x).double().square().sum())

    kinds = [(e, True, 0) for e in ALL] + [(e, False, z) for e in ALL for z in OFFSETS]
    assert found.offset > 0
    assert not found.signed
    assert error(found) <= 1.02 * min(map(error, kinds))
    assert error(found) < 0.5 * error(activation_range([seen(x)], True))


def test_max_takes_the_smallest_step_that_holds_both_ends():
    x = torch.tensor([3.7, -0.2, 0.0])
    found = activation_range([seen(x)], True, 'max', offsets=OFFSETS)
    assert found == (2, False, 16)  # from -0.25 to 3.73
    assert activation_range([seen(x)], True, 'max') == (2, True, 0)
    x[1] = -3.0
    assert activation_range([seen(x)], True, 'max', offsets=OFFSETS) == (2, True, 0)


def test_an_offset_respects_the_layers_range():
    x = tailed() * 100
    assert activation_range([seen(x)], True, 'mse', 3, OFFSETS).exponent <= 3
    assert activation_range([seen(x)], True, 'max', 3, OFFSETS).exponent <= 3


def test_no_offset_where_nothing_is_negative():
    assert activation_range([seen(tailed().abs())], False, offsets=OFFSETS).offset == 0
