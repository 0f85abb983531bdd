import builtins

import numpy as np
import pytest

from daskcurate.digits import DEMO_EPS, embed, make_digits

N_ROWS = 6000


@pytest.fixture(scope="module")
def pool():
    return make_digits(N_ROWS, seed=3)


def test_shapes_and_types(pool):
    assert len(pool) == N_ROWS
    assert pool.images.shape == (N_ROWS, 8, 8)
    assert pool.images.dtype == np.uint8
    assert pool.embeddings.shape == (N_ROWS, 64)
    assert pool.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(pool.embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(pool.embeddings, embed(pool.images))
    assert pool.label.dtype == np.int64
    assert len(set(pool.ids)) == N_ROWS
    assert pool.ids[7] == f"digit-{pool.label[7]}-000007"


def test_long_tail(pool):
    share = np.bincount(pool.label, minlength=10) / N_ROWS
    assert 0.38 < share[0] < 0.48
    assert 0.005 < share[9] < 0.02
    assert (np.diff(share) < 0.005).all()


def test_planted_duplicates_point_at_originals_of_their_class(pool):
    copies = np.flatnonzero(pool.planted_duplicate_of >= 0)
    originals = pool.planted_duplicate_of[copies]
    assert len(copies) == int(0.15 * N_ROWS)
    assert (pool.planted_duplicate_of[originals] == -1).all()
    assert (pool.label[originals] == pool.label[copies]).all()
    # Shuffled: copies come before and after their originals.
    assert 0.4 < (originals < copies).mean() < 0.6


def test_eps_separates_planted_from_other_pairs(pool):
    rows, copy_of = pool.embeddings, pool.planted_duplicate_of
    copies = np.flatnonzero(copy_of >= 0)
    to_original = (rows[copies] * rows[copy_of[copies]]).sum(axis=1)
    assert (to_original > 1 - DEMO_EPS).mean() >= 0.99
    assert (to_original > 0.985).mean() >= 0.95
    family = np.where(copy_of >= 0, copy_of, np.arange(N_ROWS))
    pairs = 0
    for start in range(0, N_ROWS, 1000):
        similar = rows[start : start + 1000] @ rows.T > 1 - DEMO_EPS
        similar &= family[start : start + 1000, None] != family
        pairs += similar.sum() // 2
    assert pairs <= 5


def test_same_seed_same_pool():
    first, again, other = make_digits(300, seed=1), make_digits(300, seed=1), make_digits(300, seed=2)
    for name in ("images", "embeddings", "ids", "label", "planted_duplicate_of"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.images != other.images).any()


@pytest.mark.parametrize(("n_rows", "fraction"), [(1, 0.15), (10, 0), (50, 0.9)])
def test_small_pools(n_rows, fraction):
    pool = make_digits(n_rows, duplicate_fraction=fraction)
    assert len(pool) == n_rows
    assert (pool.planted_duplicate_of >= 0).sum() == int(n_rows * fraction)


def test_constant_images_have_a_direction():
    flat = np.stack([np.full((8, 8), grey, dtype=np.uint8) for grey in (0, 51, 255)])
    rows = embed(flat)
    np.testing.assert_allclose(rows[:, 0], [-0.125, 0.125, 0.125])


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"n_rows": 0}, "n_rows=0 is not allowed"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"duplicate_fraction": 1.0}, r"duplicate_fraction=1.0 is not allowed: give a number in \[0, 0.9\]"),
    ],
)
def test_bad_arguments(arguments, phrase):
    with pytest.raises(ValueError, match=phrase):
        make_digits(**arguments)


def test_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "daskcurate\[demo\]"'):
        make_digits(10)
