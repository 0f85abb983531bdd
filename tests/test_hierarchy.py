"""Hierarchies: levels, resampling against a plain oracle, splits."""

import numpy as np
import pytest
from oracles import blobs, check_result

import daskcurate as dc
from daskcurate import fitting, splitting
from daskcurate.kernels import assign, lloyd
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.kernels.seeding import kmeans_plusplus


def take_closest(x, centroids, metric, count):
    """The rows of each cluster closest to its centroid, in row order: written plainly."""
    labels = assign.nearest(x, centroids, metric)
    distances = lloyd.own_distances(x, centroids, labels, metric)
    taken = []
    for j in range(len(centroids)):
        members = np.flatnonzero(labels == j)
        order = sorted(members, key=lambda i: (distances[i], i))
        taken.extend(order[:count])
    return x[np.sort(np.array(taken))]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("chunk_rows", [600, 71])
def test_resampling_is_kmeans_from_scratch_on_the_closest_rows(client, pool, tmp_path, metric, chunk_rows):
    x = blobs(0)
    rows = assign.unit_rows(x) if metric == "cosine" else x
    k, r, m, n_iters = 20, 5, 3, 6
    tree = dc.hierarchical_kmeans(
        pool(x, chunk_rows=chunk_rows), [k], sample_sizes=[r], n_resamples=m, n_iters=n_iters, metric=metric
    )
    found = dc.compute(tree, store=tmp_path / "run.zarr").levels[0]
    subset = rows
    for step in range(m + 1):
        if step:
            subset = take_closest(rows, centroids, metric, r)  # noqa: F821 - set by the step before
        rng = np.random.default_rng(derive_seed(0, "kmeans", k, step, 0))
        seeds = subset[kmeans_plusplus(subset, k, rng)]
        centroids = lloyd_in_memory([subset], seeds, metric, n_iters).centroids
    np.testing.assert_allclose(found.centroids, centroids, atol=2e-5, rtol=2e-5)
    check_result(x, found, metric)


def test_random_resampling_takes_rows_of_every_cluster(client, pool, tmp_path):
    x = blobs(1)
    tree = dc.hierarchical_kmeans(
        pool(x, chunk_rows=100), [25], sample_sizes=[4], n_resamples=2, sample_strategy="random"
    )
    found = dc.compute(tree, store=tmp_path / "run.zarr").levels[0]
    check_result(x, found, "l2")
    assert found.sizes.sum() == len(x)


def test_every_level_clusters_the_centroids_below(client, pool, tmp_path):
    x = blobs(2, n=900, centres=30)
    tree = dc.hierarchical_kmeans(pool(x, chunk_rows=200), [60, 20, 5], sample_sizes=[5, 2, 1], n_resamples=2)
    found = dc.compute(tree, store=tmp_path / "run.zarr")
    assert [level.n_clusters for level in found.levels] == [60, 20, 5]
    below = x
    for level in found.levels:
        check_result(below, level, "l2")
        below = level.centroids
    labels = np.asarray(found.levels[0].labels)
    np.testing.assert_array_equal(np.asarray(found.flat_labels(1)), labels)
    for level in (2, 3):
        labels = np.asarray(found.levels[level - 1].labels)[labels]
        np.testing.assert_array_equal(np.asarray(found.flat_labels(level)), labels)
        np.testing.assert_array_equal(
            found.flat_sizes(level), np.bincount(labels, minlength=found.levels[level - 1].n_clusters)
        )
    np.testing.assert_array_equal(np.asarray(found.flat_labels(-1)), np.asarray(found.flat_labels(3)))


def test_a_change_at_the_top_runs_the_top_alone(client, pool, tmp_path):
    emb = pool(blobs(3))
    first = dc.compute(dc.hierarchical_kmeans(emb, [30, 6]), store=tmp_path / "run.zarr")
    second = dc.compute(dc.hierarchical_kmeans(emb, [30, 7]), store=tmp_path / "run.zarr")
    assert first.levels[0].name == second.levels[0].name
    assert first.levels[1].name != second.levels[1].name
    assert first.levels[0].attributes["started"] == second.levels[0].attributes["started"]


def test_empty_clusters_are_not_handed_up(client, pool, tmp_path):
    x = np.repeat(np.eye(6, dtype=np.float32), 10, axis=0)
    tree = dc.hierarchical_kmeans(pool(x), [12, 3])
    found = dc.compute(tree, store=tmp_path / "run.zarr")
    low, high = found.levels
    assert (low.sizes > 0).sum() == 6
    above = np.asarray(high.labels)
    assert (above[low.sizes == 0] == -1).all()
    assert (above[low.sizes > 0] >= 0).all()
    assert high.sizes.sum() == 6
    assert found.flat_sizes(2).sum() == len(x)
    picks = dc.compute(dc.hierarchical_sample(found, 6), store=tmp_path / "run.zarr")
    assert len(picks) == 6


def test_resampling_skips_a_subset_with_fewer_rows_than_clusters(client, pool, tmp_path):
    x = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    x[0] += 0.5
    tree = dc.hierarchical_kmeans(pool(x), [10], sample_sizes=[2], n_resamples=2)
    with pytest.warns(UserWarning, match=r"resampled subset has \d+ rows for 10 clusters; skipped"):
        found = dc.compute(tree, store=tmp_path / "run.zarr")
    check_result(x, found.levels[0], "l2")


@pytest.mark.parametrize(
    ("metric", "giant", "masked"),
    [
        pytest.param(
            metric, giant, masked, marks=[] if (metric == "l2") == (giant == masked) else pytest.mark.slow
        )
        for metric in ("l2", "cosine")
        for giant in (False, True)
        for masked in (False, True)
    ],
)
def test_splits(client, pool, tmp_path, monkeypatch, metric, giant, masked):
    if giant:
        monkeypatch.setattr(splitting, "PART_BYTES", 4 * 5 * 60)
    x = blobs(4, n=700, centres=6)
    emb = pool(x, chunk_rows=90)
    mask = np.random.default_rng(0).random(len(x)) < 0.6 if masked else None
    tree = dc.hierarchical_kmeans(emb, [6, 4], n_splits=[5, 1], metric=metric, within=mask)
    plain = dc.hierarchical_kmeans(emb, [6], metric=metric, within=mask)
    found = dc.compute(tree, store=tmp_path / "run.zarr")
    coarse = np.asarray(dc.compute(plain, store=tmp_path / "run.zarr").levels[0].labels)
    fine, labels = found.levels[0], np.asarray(found.levels[0].labels)
    inside = np.ones(len(x), bool) if mask is None else mask
    assert (labels[~inside] == -1).all()
    assert fine.n_clusters == len(fine.sizes) == len(fine.centroids) <= 30
    assert (fine.sizes > 0).all()
    np.testing.assert_array_equal(fine.sizes, np.bincount(labels[inside], minlength=fine.n_clusters))
    parts = {(a, b) for a, b in zip(labels[inside], coarse[inside], strict=True)}
    assert len(parts) == fine.n_clusters  # no part lies in two clusters
    assert [b for _, b in sorted(parts)] == sorted(b for _, b in parts)  # those of cluster 0 come first
    rows = assign.unit_rows(x) if metric == "cosine" else x
    expected = lloyd.own_distances(rows, fine.centroids, labels, metric)
    np.testing.assert_allclose(np.asarray(fine.distances), expected, atol=1e-6, rtol=1e-5)
    for cluster in range(6):  # every row is in the nearest part of its own cluster
        own = np.array(sorted(a for a, b in parts if b == cluster))
        members = inside & (coarse == cluster)
        nearest = assign.nearest(rows[members], fine.centroids[own], metric)
        best = lloyd.own_distances(rows[members], fine.centroids[own], nearest, metric)
        np.testing.assert_allclose(expected[members], best, atol=1e-5, rtol=1e-4)
    assert found.levels[1].n_rows == fine.n_clusters
    single = dc.compute(plain, store=tmp_path / "run.zarr").levels[0]
    assert fine.inertia < single.inertia


@pytest.mark.parametrize(("metric", "strategy"), [("l2", "closest"), ("cosine", "random")])
def test_hierarchies_are_the_same_in_one_task_and_in_many(
    client, pool, tmp_path, monkeypatch, metric, strategy
):
    emb = pool(blobs(5), chunk_rows=77)
    tree = dc.hierarchical_kmeans(
        emb, [40, 8], sample_sizes=[4, 2], n_resamples=2, metric=metric, sample_strategy=strategy
    )
    local = dc.compute(tree, store=tmp_path / "a.zarr")
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    spread = dc.compute(tree, store=tmp_path / "b.zarr")
    for one, other in zip(local.levels, spread.levels, strict=True):
        np.testing.assert_array_equal(one.centroids, other.centroids)
        np.testing.assert_array_equal(np.asarray(one.labels), np.asarray(other.labels))
