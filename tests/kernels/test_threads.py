"""Threads within a kernel: the same results in the same order, and only where they were given.

There are no arrays here, and so nothing to run on a device: tasks are given one thread where they compute on a GPU.
"""

import threading

import pytest

from daskcurate.kernels.threads import spread, using_threads


@pytest.mark.parametrize("count", [0, 1, 4])
def test_results_are_in_order(count):
    with using_threads(count):
        assert spread(lambda a, b: a * b, range(50), range(50)) == [i * i for i in range(50)]


def test_threads_are_used_within_the_block_only():
    meeting = threading.Barrier(2, timeout=20)
    with using_threads(2):
        assert sorted(spread(lambda _: meeting.wait(), range(2))) == [0, 1]
    names = set(spread(lambda _: threading.current_thread().name, range(4)))
    assert names == {threading.current_thread().name}


def test_what_a_thread_calls_runs_in_that_thread_alone():
    def outer(_):
        return {threading.get_ident(), *spread(lambda _: threading.get_ident(), range(5))}

    with using_threads(2):
        assert all(len(found) == 1 for found in spread(outer, range(6)))


def test_an_error_reaches_the_caller():
    def fail(i):
        if i == 3:
            raise ValueError("three")

    with using_threads(2), pytest.raises(ValueError, match="three"):
        spread(fail, range(6))
