"""How far centroids are from their nearest others, against a float64 loop."""

import tracemalloc

import numpy as np
import pytest

from daskcurate.arrays import to_host
from daskcurate.kernels import centroids
from daskcurate.kernels.centroids import mean_nearest_cosine


def brute(x, n_neighbors):
    wide = x.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    count = min(n_neighbors, len(unit) - 1)
    return [np.sort(np.delete(row, i))[:count].mean() for i, row in enumerate(distance)]


@pytest.mark.parametrize(("k", "n_neighbors"), [(2, 1), (7, 20), (300, 20), (301, 1), (600, 5)])
def test_mean_distance_to_the_nearest_others(xp, k, n_neighbors):
    x = np.random.default_rng(k).standard_normal((k, 9)).astype(np.float32)
    x[-1] = 3 * x[0]  # a copy in another length: at distance 0, and not the centroid itself
    expected = brute(x, n_neighbors)
    on = xp.asarray(x)
    found = to_host(mean_nearest_cosine(on, 0, k, n_neighbors))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    edges = [0, 1, k // 2, k]
    parts = [
        to_host(mean_nearest_cosine(on, *ends, n_neighbors)) for ends in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)


@pytest.mark.parametrize(("k", "d", "n_neighbors"), [(1200, 384, 20), (4000, 16, 20), (300, 500, 299)])
def test_memory_is_that_which_a_plan_counts_and_pieces_do_not_matter(monkeypatch, k, d, n_neighbors):
    x = np.random.default_rng(0).standard_normal((k, d)).astype(np.float32)
    found = []
    for piece in (1, centroids.PIECE_BYTES):
        monkeypatch.setattr(centroids, "PIECE_BYTES", piece)
        tracemalloc.start()
        found.append(mean_nearest_cosine(x, 0, 300, n_neighbors))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < centroids.nearest_bytes(k, d, n_neighbors) + 5 * 2**20
    assert 0.7 * centroids.nearest_bytes(k, d, n_neighbors) < peak  # in pieces of the usual size
    np.testing.assert_array_equal(*found)


def test_alone_there_is_no_distance(xp):
    assert to_host(mean_nearest_cosine(xp.ones((1, 4), dtype=np.float32), 0, 1, 20)).tolist() == [0]
