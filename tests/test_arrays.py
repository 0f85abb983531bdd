import numpy as np
import pytest

from daskcurate.arrays import row_dots, to_float32


def test_every_float16_is_widened_as_numpy_does():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for x in (every, every[np.isfinite(every)], every[np.isfinite(every)][::-3], every[:0]):
        wide = to_float32(x)
        assert wide.dtype == np.float32
        np.testing.assert_array_equal(wide, x.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(wide), np.signbit(x))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_widened_rows_are_a_copy_where_they_are_asked_for(dtype):
    x, out = np.arange(12, dtype=dtype).reshape(3, 4), np.empty((3, 4), np.float32)
    assert to_float32(x, out) is out
    np.testing.assert_array_equal(out, x)
    assert not np.shares_memory(to_float32(x), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 7, 33, 384, 385])
def test_products_do_not_depend_on_where_rows_start(d, dtype):
    rng = np.random.default_rng(d)
    a, b = rng.standard_normal((2, 9, d)).astype(dtype)
    dots = row_dots(a, b)
    room = np.empty((2, 9 * d + 16), dtype)
    for at in range(16):
        held = room[:, at : at + 9 * d].reshape(2, 9, d)
        held[:] = a, b
        np.testing.assert_array_equal(row_dots(*held), dots)
        np.testing.assert_array_equal(row_dots(held[0], b), dots)
    np.testing.assert_array_equal([row_dots(a[i : i + 1], b[i : i + 1])[0] for i in range(9)], dots)
