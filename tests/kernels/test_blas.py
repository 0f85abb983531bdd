import numpy as np
import pytest

from daskcurate.kernels.blas import own_products


@pytest.mark.parametrize("m", [0, 1, 2, 17, 200])
@pytest.mark.parametrize("d", [0, 1, 3, 384])
@pytest.mark.parametrize("apart", [False, True])
def test_the_lower_half_is_written_and_nothing_else(m, d, apart):
    rng = np.random.default_rng(m + d)
    x, out = rng.standard_normal((m, d + 5 * apart)).astype(np.float32), np.full((m, m + 3 * apart), 7, "f4")
    own_products(x[:, :d], out[:, :m])
    lower = np.tri(m, dtype=bool)
    np.testing.assert_allclose(out[:, :m][lower], (x[:, :d] @ x[:, :d].T)[lower], rtol=1e-5, atol=1e-4)
    assert (out[:, :m][~lower] == 7).all()
    assert (out[:, m:] == 7).all()


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (np.ones((3, 2)), np.ones((3, 3), "f4")),
        (np.ones((3, 2), "f4"), np.ones((3, 3))),
        (np.ones((3, 2), "f4"), np.ones((3, 2), "f4")),
        (np.ones((2, 3), "f4").T, np.ones((3, 3), "f4")),
        (np.ones((3, 2), "f4"), np.ones((3, 6), "f4")[:, ::2]),
        (np.broadcast_to(np.ones(2, "f4"), (3, 2)), np.ones((3, 3), "f4")),
    ],
)
def test_what_blas_cannot_take_is_refused(x, out):
    with pytest.raises(ValueError, match=r"give float32|side by side"):
        own_products(x, out)
