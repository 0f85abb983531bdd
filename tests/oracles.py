"""Data and plain float64 oracles that several test modules share."""

import numpy as np


def blobs(seed, n=600, d=5, centres=8, spread=0.3):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((centres, d)) * 3
    return (means[rng.integers(0, centres, n)] + spread * rng.standard_normal((n, d))).astype(np.float32)


def oracle(x, centroids, metric):
    """(m, k) float64 squared distances."""
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return ((x[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)


def check_result(x, found, metric, inside=None):
    """The result is what its centroids say, by the oracle."""
    inside = np.ones(len(x), bool) if inside is None else inside
    labels, distances = np.asarray(found.labels), np.asarray(found.distances)
    assert labels.dtype == np.int32
    assert distances.dtype == np.float32
    assert found.centroids.dtype == np.float32
    assert (labels[~inside] == -1).all()
    assert np.isnan(distances[~inside]).all()
    square = oracle(x, found.centroids, metric)[inside]
    own = square[np.arange(len(square)), labels[inside]]
    np.testing.assert_allclose(own, square.min(axis=1), atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(
        distances[inside], own / 2 if metric == "cosine" else np.sqrt(own), atol=1e-4, rtol=1e-4
    )
    np.testing.assert_array_equal(found.sizes, np.bincount(labels[inside], minlength=found.n_clusters))
    np.testing.assert_allclose(found.inertia, own.sum(), rtol=1e-5, atol=1e-6)
