"""The N smallest of all rows without a sort."""

import dask
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskcurate.extremes import float_bits, smallest
from daskcurate.tasks import task


class Run:
    def task(self, function, *args, name, key=0):
        return task(function, *args, name=name, key=f"test-{key}")

    def gather(self, tasks, step=""):
        return list(dask.compute(*tasks, scheduler="synchronous"))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
def test_float_bits_keep_the_order(values):
    values = np.array(values, dtype=np.float32)
    bits = float_bits(values)
    for i in range(len(values) - 1):
        a, b = values[i], values[i + 1]
        if a != b:  # 0.0 and -0.0 are equal floats with different bits
            assert (bits[i] < bits[i + 1]) == (a < b)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=15), min_size=1, max_size=5),
    st.data(),
)
def test_the_smallest_rows_by_key_then_number(blocks, data):
    blocks = [
        (float_bits(np.array([a for a, _ in b], np.float32)), np.array([e for _, e in b], bool))
        for b in blocks
    ]
    bits, eligible = (np.concatenate([b[i] for b in blocks]) for i in range(2))
    count = data.draw(st.integers(0, int(eligible.sum())))
    run = Run()
    keys = [run.task(lambda b=b: b, name="block", key=i) for i, b in enumerate(blocks)]
    found = np.concatenate(run.gather(smallest(run, keys, count, "t")))
    order = [i for i in np.lexsort((np.arange(len(bits)), bits)) if eligible[i]]
    expected = np.zeros(len(bits), bool)
    expected[order[:count]] = True
    np.testing.assert_array_equal(found, expected)
