"""The algorithms ``fast`` and ``two-level``: quality, exact labels, recall, resumption, and refusals."""

import numpy as np
import pytest
from oracles import blobs, check_result

import daskcurate as dc
from daskcurate import fitting
from daskcurate.runner import StageRun


@pytest.fixture(autouse=True)
def _spread(monkeypatch):
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)


def texts_like(seed, n=6000, d=24, centres=400):
    return blobs(seed, n=n, d=d, centres=centres, spread=1.5)


@pytest.mark.parametrize(
    ("metric", "init"),
    [
        ("l2", "k-means++"),
        ("cosine", "random"),
        pytest.param("l2", "random", marks=pytest.mark.slow),
        pytest.param("cosine", "k-means++", marks=pytest.mark.slow),
    ],
)
def test_fast_labels_are_exact_and_as_good_as_lloyd_s(client, pool, tmp_path, metric, init):
    x = texts_like(0)
    emb = pool(x, chunk_rows=700)
    found = dc.compute(
        dc.kmeans(emb, 300, metric=metric, init=init, algorithm="fast"), store=tmp_path / "a.zarr"
    )
    check_result(x, found, metric)
    assert (found.sizes > 0).all()
    assert found.recall == 1
    plain = dc.compute(dc.kmeans(emb, 300, metric=metric, init=init, n_iters=20), store=tmp_path / "b.zarr")
    assert found.inertia < 1.05 * plain.inertia


def test_two_level_says_how_many_labels_are_exact(client, pool, tmp_path):
    x = texts_like(1)
    emb = pool(x, chunk_rows=900)
    found = dc.compute(dc.kmeans(emb, 500, algorithm="two-level"), store=tmp_path / "run.zarr")
    labels, distances = np.asarray(found.labels), np.asarray(found.distances)
    square = ((x[:, None, :].astype(np.float64) - found.centroids.astype(np.float64)) ** 2).sum(axis=2)
    exact = (square.argmin(axis=1) == labels).mean()
    assert 0.9 < exact <= 1
    assert abs(found.recall - exact) < 0.02
    np.testing.assert_allclose(distances, np.sqrt(square[np.arange(len(x)), labels]), rtol=1e-5)
    np.testing.assert_array_equal(found.sizes, np.bincount(labels, minlength=500))
    assert found.inertia == pytest.approx((square[np.arange(len(x)), labels]).sum(), rel=1e-6)
    reopened = dc.compute(dc.kmeans(emb, 500, algorithm="two-level"), store=tmp_path / "run.zarr")
    assert reopened.recall == found.recall


@pytest.mark.parametrize(
    ("algorithm", "stop_after"),
    [pytest.param("fast", 1, marks=pytest.mark.slow), ("fast", 3), ("two-level", 2)],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    client, pool, tmp_path, monkeypatch, algorithm, stop_after
):
    emb = pool(texts_like(2, n=3000), chunk_rows=400)
    node = dc.kmeans(emb, 200, algorithm=algorithm, n_iters=6, seed=7)
    whole = dc.compute(node, store=tmp_path / "whole.zarr")
    saves = []
    plain = StageRun.save

    def save(self, **checkpoint):
        plain(self, **checkpoint)
        saves.append(checkpoint)
        if len(saves) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageRun, "save", save)
    with pytest.raises(KeyboardInterrupt):
        dc.compute(node, store=tmp_path / "run.zarr")
    resumed = dc.compute(node, store=tmp_path / "run.zarr")
    assert len(saves) > stop_after
    for name in ("centroids", "labels", "distances", "sizes"):
        np.testing.assert_array_equal(np.asarray(getattr(whole, name)), np.asarray(getattr(resumed, name)))


def test_the_sample_of_seeds_may_be_shuffled_in_parts(client, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("daskcurate.seeds.WHOLE_BYTES", 0)
    emb = pool(texts_like(3, n=2500), chunk_rows=300)
    node = dc.kmeans(emb, 100, algorithm="fast", n_iters=3)
    one = dc.compute(node, store=tmp_path / "a.zarr")
    monkeypatch.setattr("daskcurate.planning.SMALL_REGROUP_BYTES", 0)
    other = dc.compute(node, store=tmp_path / "b.zarr")
    np.testing.assert_array_equal(one.centroids, other.centroids)


def test_many_copies_and_fewer_distinct_rows_than_clusters(client, pool, tmp_path):
    x = np.repeat(texts_like(4, n=60), 40, axis=0)
    emb = pool(x, chunk_rows=500)
    for algorithm in ("fast", "two-level"):
        found = dc.compute(dc.kmeans(emb, 100, algorithm=algorithm), store=tmp_path / "run.zarr")
        assert found.n_clusters == 100
        assert int(found.sizes.sum()) == len(x)
        assert np.isfinite(found.centroids).all()


def test_as_many_clusters_as_rows(client, pool, tmp_path):
    x = texts_like(5, n=150)
    found = dc.compute(dc.kmeans(pool(x, chunk_rows=40), 150, algorithm="fast"), store=tmp_path / "run.zarr")
    assert sorted(found.sizes.tolist()) == [1] * 150


def test_restarts_hierarchies_and_splits_take_the_algorithm(client, pool, tmp_path):
    x = texts_like(6, n=2000)
    emb = pool(x, chunk_rows=300)
    best = dc.compute(dc.kmeans(emb, 60, algorithm="fast", n_init=2, n_iters=3), store=tmp_path / "run.zarr")
    check_result(x, best, "l2")
    tree = dc.hierarchical_kmeans(
        emb, [120, 20], sample_sizes=[6, 2], n_resamples=1, algorithm="fast", n_iters=4
    )
    found = dc.compute(tree, store=tmp_path / "run.zarr")
    assert found.flat_sizes(2).sum() == 2000
    split = dc.compute(
        dc.hierarchical_kmeans(emb, [20], n_splits=4, algorithm="fast", n_iters=4),
        store=tmp_path / "run.zarr",
    )
    assert int(split.levels[0].sizes.sum()) == 2000


def test_unknown_algorithms_are_refused(pool):
    emb = pool(texts_like(7, n=100))
    with pytest.raises(
        ValueError, match="algorithm='elkan' is not allowed: give one of 'lloyd', 'fast', 'two-level'"
    ):
        dc.kmeans(emb, 5, algorithm="elkan")
    with pytest.raises(TypeError, match="algorithm=3 is not allowed"):
        dc.hierarchical_kmeans(emb, [5], algorithm=3)


def test_small_problems_are_solved_by_lloyd_whatever_is_given(client, pool, tmp_path, monkeypatch):
    monkeypatch.undo()
    emb = pool(texts_like(8, n=400))
    plain = dc.compute(dc.kmeans(emb, 20, n_iters=10), store=tmp_path / "run.zarr")
    fast = dc.compute(dc.kmeans(emb, 20, n_iters=10, algorithm="fast"), store=tmp_path / "run.zarr")
    np.testing.assert_array_equal(plain.centroids, fast.centroids)


@pytest.mark.parametrize("whole_bytes", [0, 1 << 30])
def test_either_way_of_seeding_is_as_good_as_lloyd_s(client, pool, tmp_path, monkeypatch, whole_bytes):
    emb = pool(texts_like(8, n=4000), chunk_rows=500)
    plain = dc.compute(dc.kmeans(emb, 150, n_iters=10), store=tmp_path / "run.zarr")
    monkeypatch.setattr("daskcurate.seeds.WHOLE_BYTES", whole_bytes)
    found = dc.compute(dc.kmeans(emb, 150, algorithm="fast"), store=tmp_path / "run.zarr")
    assert found.inertia < 1.05 * plain.inertia
