"""Codes of weights whose errors make up for each other."""

import numpy as np
import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.calibration import compensation
from mmclipq.calibration.compensation import Block, column_blocks, compensated_codes
from mmclipq.calibration.rate import rated_codes


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(columns, groups=1, count=400, seed=1):
    """Columns ``(G, n, count)`` that belong together: a few causes and some noise."""
    causes = drawn(groups, 4, count, seed=seed)
    mixed = drawn(groups, columns, 4, seed=seed + 1) @ causes
    return mixed + 0.3 * drawn(groups, columns, count, seed=seed + 2)


def moments(x):
    return (x @ x.transpose(1, 2)).double() / x.shape[2]


def blocks_of(x):
    parts = column_blocks(x.shape[1])
    return [Block.of(moments(x[:, part]), part) for part in parts]


def output_error(weight, codes, exponents, x):
    """Mean square of what the outputs differ by."""
    rows = (fp.decode(codes, exponents, axis=0) - weight).flatten(1)
    found = rows.view(len(x), -1, x.shape[1]) @ x
    return float(found.square().mean())


def test_blocks_are_equal_and_cover_all_columns():
    for count in (1, 2304, 2305, 12544):
        parts = column_blocks(count)
        sizes = [part.stop - part.start for part in parts]
        assert (parts[0].start, parts[-1].stop, sum(sizes)) == (0, count, count)
        assert max(sizes) <= 2304
        assert max(sizes) - min(sizes) <= 1


def test_the_factors_are_those_of_the_inverse():
    found = moments(inputs(6, groups=2))
    block = Block.of(found.clone(), slice(0, 6))
    for group in range(2):
        order = block.order[group]
        squares = found[group].diagonal()
        assert torch.equal(squares[order], squares.sort(descending=True).values)
        damped = found[group] + 0.1 * squares.mean() * torch.eye(6)
        damped = damped[order][:, order]
        for place in range(6):
            rest = damped[place:, place:]
            if place < 5:  # what those behind explain, by regression
                by = torch.linalg.solve(rest[1:, 1:], rest[1:, 0])
                left = rest[0, 0] - by @ rest[1:, 0]
                moved = block.spread[group, place, place + 1 :].double()
                torch.testing.assert_close(moved, -by, rtol=1e-4, atol=1e-4)
            else:
                left = rest[0, 0]
            assert float(block.left[group, place]) == pytest.approx(float(left), rel=1e-4)


def test_codes_are_those_of_one_column_after_the_other(monkeypatch):
    """Written out in NumPy for one channel, with errors that reach all columns at once."""
    monkeypatch.setattr(compensation, '_LAZY', 3)
    weight, x = drawn(1, 10) * 0.1, inputs(10)
    (block,) = blocks_of(x)
    rate = 1e-5
    codes, exponents = compensated_codes(weight, [block], torch.ones(1), rate)
    step = float(fp.power_of_two(fp.step_exponent(exponents)))
    order = block.order[0].numpy()
    rest = weight[0].double().numpy()[order] / step
    spread, left = block.spread[0].double().numpy(), block.left[0].double().numpy()
    near, _ = rated_codes(weight[:, order], block.left, rate)
    bits = compensation.code_bits(near.float().square().mean(1).sqrt())[0].numpy()
    wanted = np.zeros(10, int)
    for place in range(10):
        best = np.rint(rest[place])
        tried = (best, best - np.sign(best), 0.0)
        cost = [
            (code - rest[place]) ** 2 * left[place] * step**2 + rate * bits[int(code) + 128]
            for code in tried
        ]
        wanted[order[place]] = code = tried[int(np.argmin(cost))]
        rest[place + 1 :] -= (rest[place] - code) * spread[place, place + 1 :]
    assert codes[0].tolist() == wanted.tolist()


@pytest.mark.parametrize('groups', [1, 4])
def test_outputs_err_less_than_with_codes_that_count_alone(groups):
    weight, x = drawn(8, 5, 3, 3) * 0.1, inputs(45, groups)
    share = torch.ones(8)
    alone = moments(x).diagonal(dim1=1, dim2=2).repeat_interleave(8 // groups, 0)
    rate = 1e-4
    found = compensated_codes(weight, blocks_of(x), share, rate)
    other = rated_codes(weight, alone.view(8, 5, 3, 3), rate)
    assert output_error(weight, *found, x) < 0.3 * output_error(weight, *other, x)
    assert found[0].abs().sum() < 1.05 * other[0].abs().sum()


def test_inputs_that_do_not_belong_together_change_little():
    weight, x = drawn(8, 20) * 0.1, drawn(1, 20, 4000, seed=3)
    found, _ = compensated_codes(weight, blocks_of(x), torch.ones(8), 1e-6)
    other, _ = rated_codes(weight, 1.1 * torch.ones(()), 1e-6)
    assert (found.int() - other.int()).abs().max() <= 1


def test_columns_are_cut(monkeypatch):
    monkeypatch.setattr(compensation, 'COLUMNS', 16)
    weight, x = drawn(8, 45) * 0.1, inputs(45)
    blocks = blocks_of(x)
    assert [block.columns.stop for block in blocks] == [15, 30, 45]
    found = compensated_codes(weight, blocks, torch.ones(8), 1e-4)
    other = rated_codes(weight, moments(x)[0].diagonal()[None], 1e-4)
    assert output_error(weight, *found, x) < 0.6 * output_error(weight, *other, x)


def test_inputs_that_were_never_seen():
    weight, x = drawn(4, 12) * 0.1, inputs(12)
    x[:, ::2] = 0
    codes, exponents = compensated_codes(weight, blocks_of(x), torch.ones(4), 1e-6)
    assert output_error(weight, codes, exponents, x) < 1e-4
    (block,) = blocks_of(torch.zeros(1, 12, 9))
    assert block.left.isfinite().all()
    compensated_codes(weight, [block], torch.ones(4), 1e-6)


def test_no_code_stands_for_more_than_the_range():
    weight = drawn(8, 45) * 100
    codes, exponents = compensated_codes(weight, blocks_of(inputs(45)), torch.ones(8), 1e-3, 1)
    assert (fp.decode(codes, exponents, axis=0).abs() <= 2).all()
    assert (codes != -128).all()
    assert fp.decode(codes, exponents, axis=0).abs().max() == 2


def test_types_and_repetition():
    weight, x = drawn(6, 3, 3, 3), inputs(27)
    codes, exponents = compensated_codes(weight, blocks_of(x), torch.ones(6), 1e-3)
    assert (codes.shape, codes.dtype) == (weight.shape, torch.int8)
    assert (exponents.shape, exponents.dtype) == ((6,), torch.int32)
    again = compensated_codes(weight, blocks_of(x), torch.ones(6), 1e-3)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], exponents)
