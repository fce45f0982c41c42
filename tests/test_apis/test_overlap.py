"""Several items at once: order, bounded reading ahead, errors and an early end."""

import threading
import time

import pytest
import torch

from mmclipq.apis.overlap import default_workers, in_order


@pytest.mark.parametrize('workers', [1, 2, 5])
def test_results_keep_the_order_of_the_items(workers):
    def slow_first(n):
        time.sleep(0.01 * (n % 3 == 0))
        return n * n

    assert list(in_order(slow_first, iter(range(20)), workers)) == [n * n for n in range(20)]
    assert list(in_order(slow_first, [], workers)) == []


def test_several_run_at_once_with_their_share_of_threads():
    together = threading.Barrier(3, timeout=20)
    before = torch.get_num_threads()

    def work(_):
        together.wait()
        return torch.get_num_threads()

    assert set(in_order(work, range(6), 3)) == {max(1, before // 3)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize('workers', [1, 2, 4])
def test_few_items_are_read_ahead(workers):
    read = []

    def items():
        for n in range(100):
            read.append(n)
            yield n

    results = in_order(lambda n: n, items(), workers)
    for n in range(30):
        assert next(results) == n
        assert len(read) <= n + 2 * workers + 1
    results.close()
    assert len(read) < 50


@pytest.mark.parametrize('workers', [1, 3])
def test_an_error_comes_in_its_place_and_ends_the_work(workers):
    done = []

    def work(n):
        if n == 5:
            raise ValueError('five')
        done.append(n)
        return n

    results = in_order(work, range(1000), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match='five'):
        next(results)
    assert len(done) <= 5 + 2 * workers + 1
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith('infer') for name in names)


def test_there_is_a_worker():
    assert default_workers() >= 1
