"""How far centroids are from their nearest others, against a float64 loop."""

import numpy as np
import pytest

from daskcurate.arrays import to_host
from daskcurate.kernels.centroids import mean_nearest_cosine


def brute(centroids, n_neighbors):
    wide = centroids.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    count = min(n_neighbors, len(unit) - 1)
    return [np.sort(np.delete(row, i))[:count].mean() for i, row in enumerate(distance)]


@pytest.mark.parametrize(("k", "n_neighbors"), [(2, 1), (7, 20), (300, 20), (301, 1), (600, 5)])
def test_mean_distance_to_the_nearest_others(xp, k, n_neighbors):
    centroids = np.random.default_rng(k).standard_normal((k, 9)).astype(np.float32)
    centroids[-1] = 3 * centroids[0]  # a copy in another length: at distance 0, and not the centroid itself
    expected = brute(centroids, n_neighbors)
    on = xp.asarray(centroids)
    found = to_host(mean_nearest_cosine(on, 0, k, n_neighbors))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    edges = [0, 1, k // 2, k]
    parts = [
        to_host(mean_nearest_cosine(on, *ends, n_neighbors)) for ends in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)


def test_alone_there_is_no_distance(xp):
    assert to_host(mean_nearest_cosine(xp.ones((1, 4), dtype=np.float32), 0, 1, 20)).tolist() == [0]
