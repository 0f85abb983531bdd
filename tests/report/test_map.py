"""The map of the pool, against a singular value decomposition of all rows."""

import numpy as np
import pytest

from daskcurate import samples
from daskcurate.report.map2d import map_pool


@pytest.mark.parametrize("normalize", [True, False])
def test_the_map_is_the_first_two_components(pool, normalize):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 7)) * [5, 3, 1, 1, 0.5, 0.1, 0.1] + 2).astype(np.float32)
    found = map_pool(pool(x, normalize=normalize))
    assert np.array_equal(found.rows, np.arange(400))
    wide = x.astype(np.float64)
    if normalize:
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    wide -= wide.mean(axis=0)
    u, s, _ = np.linalg.svd(wide, full_matrices=False)
    for axis in range(2):
        expected = u[:, axis] * s[axis]
        sign = np.sign(expected @ found.places[:, axis])
        np.testing.assert_allclose(found.places[:, axis], sign * expected, atol=1e-3 * s[0] / 20)
        assert found.explained[axis] == pytest.approx(s[axis] ** 2 / (s**2).sum(), rel=1e-4)


def test_a_sample_is_drawn_by_its_seed(pool):
    emb = pool(np.random.default_rng(0).standard_normal((500, 3)))
    found = map_pool(emb, seed=1, count=50)
    assert len(np.unique(found.rows)) == 50
    assert np.array_equal(found.rows, map_pool(emb, seed=1, count=50).rows)
    assert not np.array_equal(found.rows, map_pool(emb, seed=2, count=50).rows)


def test_pools_without_two_directions(pool):
    for rows in (np.ones((5, 3)), np.arange(1, 9.0)[:, None], np.ones((1, 4))):
        found = map_pool(pool(rows, normalize=False))
        assert found.places.shape == (len(rows), 2)
        assert np.isfinite(found.places).all()


def test_rows_of_a_pool_at_a_url_come_from_a_few_chunks(pool, monkeypatch):
    emb = pool(np.random.default_rng(0).standard_normal((900_000, 3)), dtype="float16")
    monkeypatch.setattr(samples, "REMOTE_CHUNKS", 1)
    assert emb.n_chunks > 1
    assert not samples.sample_few_chunks(emb, 100, 0)[1]
    monkeypatch.setattr(samples, "is_local", lambda path: False)
    rows, whole_chunks = samples.sample_few_chunks(emb, 100, 0)
    assert whole_chunks
    assert len(np.unique(rows // emb.chunk_rows)) == 1
    assert np.array_equal(samples.read_rows(emb, rows), emb.rows.read(0, len(emb))[rows])
