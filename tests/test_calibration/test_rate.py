"""Codes that cost least in error plus a rate times bits."""

import math

import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.calibration.rate import code_bits, rated_codes
from mmclipq.graph.codes import encode_codes


def drawn(shape=(8, 40), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def cost(weight, codes, exponents, importance, rate):
    """Error and bits, written out."""
    values = fp.decode(codes, exponents, axis=0)
    error = ((values - weight) ** 2 * importance).flatten(1).sum(1)
    flat = codes.flatten(1)
    table = code_bits(flat.float().square().mean(1).sqrt())
    return error + rate * table.gather(1, flat.long() + 128).sum(1)


def test_bits_are_those_of_a_distribution():
    rms = torch.tensor([0.0, 0.3, 1.0, 20.0, 128.0])
    shares = 2.0 ** -code_bits(rms)
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    assert (shares.argmax(1) == 128).all()
    assert code_bits(torch.tensor([1000.0])).max() < 14


def test_a_rate_of_almost_nothing_is_rounding_to_the_finest_step():
    weight = drawn()
    codes, exponents = rated_codes(weight, torch.ones(()), 1e-20)
    values = fp.decode(codes, exponents, axis=0)
    steps = fp.power_of_two(fp.step_exponent(exponents))[:, None]
    assert ((values - weight).abs() <= steps / 2).all()
    assert (codes.abs().amax(1) > 31).all()


def test_a_high_rate_leaves_zeros():
    codes, _ = rated_codes(drawn(), torch.ones(()), 1e3)
    assert not codes.any()


def test_the_choice_costs_no_more_than_rounding_in_any_step():
    weight, importance, rate = drawn(), torch.rand(8, 40) + 0.1, 1e-4
    codes, exponents = rated_codes(weight, importance, rate)
    found = cost(weight, codes, exponents, importance, rate)
    for octave in range(-6, 5):
        others = torch.full((8,), octave, dtype=torch.int32)
        rounded = fp.encode(weight, others, axis=0)
        # The bits of what was chosen are those of the choice before the last: a little is lost.
        assert (found <= 1.03 * cost(weight, rounded, others, importance, rate)).all()


def test_more_rate_is_fewer_bytes_and_more_error():
    pytest.importorskip('constriction', reason='sizes are those of the dense form')
    weight = drawn((40, 200))
    sizes, errors = [], []
    for rate in (1e-7, 1e-6, 1e-5, 1e-4):
        codes, exponents = rated_codes(weight, torch.ones(()), rate)
        sizes.append(len(encode_codes({'w': codes})[1]))
        errors.append(float((fp.decode(codes, exponents, axis=0) - weight).square().sum()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[-1] < 0.6 * sizes[0]


def test_fewer_bytes_than_rounding_for_the_same_error():
    pytest.importorskip('constriction', reason='sizes are those of the dense form')
    weight = drawn((100, 400))
    codes, exponents = rated_codes(weight, torch.ones(()), 6e-5)
    error = float((fp.decode(codes, exponents, axis=0) - weight).square().sum())
    size = len(encode_codes({'w': codes})[1])
    points = []
    for octave in range(-2, 5):
        others = torch.full((100,), octave, dtype=torch.int32)
        rounded = fp.encode(weight, others, axis=0)
        rest = float((fp.decode(rounded, others, axis=0) - weight).square().sum())
        points.append((math.log(rest), len(encode_codes({'w': rounded})[1])))
    (finer, more), (coarser, less) = (
        max(p for p in points if p[0] <= math.log(error)),
        min(p for p in points if p[0] > math.log(error)),
    )
    between = more + (less - more) * (math.log(error) - finer) / (coarser - finer)
    assert size < between


def test_unimportant_channels_pay_for_important_ones():
    weight = drawn()
    importance = torch.ones(8, 40)
    importance[:, ::2] = 1e-3
    codes, exponents = rated_codes(weight, importance, 1e-4)
    error = (fp.decode(codes, exponents, axis=0) - weight).square()
    assert error[:, 1::2].mean() < 0.5 * error[:, ::2].mean()


@pytest.mark.parametrize('shape', [(3, 4, 3, 3), (3, 4), (1, 1)])
def test_shapes_and_types(shape):
    codes, exponents = rated_codes(drawn(shape), torch.ones(shape), 1e-5)
    assert (codes.shape, codes.dtype) == (torch.Size(shape), torch.int8)
    assert (exponents.shape, exponents.dtype) == (shape[:1], torch.int32)


def test_zeros_and_an_outlier():
    weight = torch.zeros(2, 50)
    weight[1, 7] = -3.0
    codes, exponents = rated_codes(weight, torch.ones(()), 1e-3)
    assert not codes[0].any()
    assert codes[1].count_nonzero() == 1
    assert float(fp.decode(codes, exponents, axis=0)[1, 7]) == pytest.approx(-3.0, rel=0.05)


def test_weights_saturate_at_the_range_of_the_layer():
    codes, exponents = rated_codes(drawn() * 100, torch.ones(()), 1e-9, upper=1)
    assert fp.decode(codes, exponents, axis=0).abs().max() <= 2
