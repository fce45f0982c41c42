"""The choice of tiles: every choice fits, and small results are split."""

import pytest

from mmclipq.ops.cuda.library import Properties, Tile
from mmclipq.ops.cuda.tiles import DEPTH, Choice, choices, estimate, fastest

TILES = [
    Tile(0, 256, 128, 73728, False), Tile(1, 128, 128, 49152, False),
    Tile(2, 128, 64, 49152, False), Tile(3, 64, 64, 32768, False),
    Tile(4, 64, 32, 24576, False), Tile(5, 128, 64, 36864, True),
]  # fmt: skip
T4, H200 = Properties(40, 65536, 75), Properties(132, 232448, 90)


def test_a_tile_must_fit_into_shared_memory():
    assert 0 not in {c.tile.number for c in choices(TILES, 60800, 256, 2304, False, T4)}
    assert choices(TILES, 60800, 256, 2304, False, H200)[0].tile.number == 0


def test_few_channels_have_their_own_tile():
    assert {c.tile.number for c in choices(TILES, 173056, 32, 64, True, H200)} == {5}


def test_small_results_of_great_depth_are_split():
    best = choices(TILES, 169, 256, 4608, False, H200)[0]
    assert best.splits > 1
    assert best.tiles(169, 256) * best.splits <= 2 * H200.multiprocessors


@pytest.mark.parametrize('depth', [64, 256, 512, 4608])
def test_every_split_has_steps_enough(depth):
    for choice in choices(TILES, 100, 100, depth, False, H200):
        assert choice.splits == 1 or depth // DEPTH // choice.splits >= 4


def test_memory_of_split_sums():
    tile = TILES[3]
    assert Choice(tile, 1).sums(100, 100) == 0
    assert Choice(tile, 2).sums(100, 100) == 4 * 64 * 64


def test_more_work_takes_longer():
    choice = Choice(TILES[1], 1)
    small, large = (estimate(choice, pixels, 256, 2304, H200) for pixels in (20_000, 200_000))
    assert large > 5 * small


def test_the_fastest_is_measured():
    found = choices(TILES, 169, 1024, 4608, False, H200)
    assert fastest(found, lambda choice: abs(choice.splits - 3)).splits == 3
    assert fastest(found[:2], lambda choice: 1.0) is found[0]
