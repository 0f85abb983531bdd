"""The algorithms ``fast`` and ``two-level``: quality, exact labels, recall, resumption, and refusals."""

import sys

import numpy as np
import pytest
from oracles import blobs, check_result

import daskcurate as dc
from daskcurate import fast_loop, fitting, narrowing
from daskcurate.planning import Limits
from daskcurate.runner import StageRun

KMEANS = sys.modules["daskcurate.kmeans"]
"""The module: ``dc.kmeans`` is the function."""


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


def with_leading_directions(seed, n=3000, d=128):
    """Rows whose spread falls from direction to direction, as that of embeddings does."""
    return texts_like(seed, n=n, d=d, centres=150) * np.exp(-0.06 * np.arange(d, dtype=np.float32))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_rows_are_looked_at_in_their_leading_directions(client, pool, tmp_path, monkeypatch, metric):
    widths = []
    monkeypatch.setattr(
        KMEANS,
        "with_directions",
        lambda *args: widths.append((found := narrowing.with_directions(*args)).narrow.blocks.dim) or found,
    )
    x = with_leading_directions(3)
    emb = pool(x, chunk_rows=400)
    node = dc.kmeans(emb, 120, metric=metric, algorithm="fast")
    found = dc.compute(node, store=tmp_path / "run.zarr")
    assert len(widths) == 1
    assert 0 < widths[0] <= 0.6 * 128
    check_result(x, found, metric)
    assert (found.sizes > 0).all()
    # the same where the rows in them are made anew for every pass, and where the rows are read for every pass
    for room in (x.nbytes, 0):
        monkeypatch.setattr(Limits, "holds", lambda self, nbytes, *_, room=room: nbytes <= room)
        again = dc.compute(node, store=tmp_path / f"run-{len(widths)}.zarr")
        for name in ("centroids", "labels", "distances", "sizes"):
            np.testing.assert_array_equal(np.asarray(getattr(found, name)), np.asarray(getattr(again, name)))
    assert len(widths) == 3
    # and as good as without
    monkeypatch.setattr(KMEANS, "with_directions", lambda run, blocks, *_: blocks)
    without = dc.compute(node, store=tmp_path / "without.zarr")
    assert found.inertia < 1.03 * without.inertia


def test_resampled_rows_are_looked_at_in_the_pool_s_directions(client, pool, tmp_path, monkeypatch):
    seen, plain = [], narrowing.narrowed
    monkeypatch.setattr(KMEANS, "narrowed", lambda *args: seen.append(args[2:4]) or plain(*args))
    x = with_leading_directions(4)
    tree = dc.hierarchical_kmeans(
        pool(x, chunk_rows=400), [150, 20], sample_sizes=[8, 2], n_resamples=2, algorithm="fast", n_iters=3
    )
    found = dc.compute(tree, store=tmp_path / "run.zarr")
    check_result(x, found.levels[0], "l2")
    assert len(seen) >= 2
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("algorithm", "rows", "is_last"),
    [
        pytest.param("fast", texts_like, lambda saved: saved["iteration"] == 1, marks=pytest.mark.slow),
        ("fast", texts_like, lambda saved: saved["iteration"] == 3),
        ("two-level", texts_like, lambda saved: saved["iteration"] == 2),
        ("fast", with_leading_directions, lambda saved: saved["iteration"] == 2),
        ("fast", with_leading_directions, lambda saved: saved["iteration"] == saved["end"] - 3),
        ("fast", with_leading_directions, lambda saved: saved["iteration"] == saved["end"] - 1),
        ("fast", with_leading_directions, lambda saved: saved["iteration"] == saved["end"]),
        ("two-level", with_leading_directions, lambda saved: saved["iteration"] == saved["end"]),
    ],
    ids=["1", "3", "two-level", "in directions", "all", "last", "end", "two-level end"],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    client, pool, tmp_path, monkeypatch, algorithm, rows, is_last
):
    emb = pool(rows(2, n=3000), chunk_rows=400)
    node = dc.kmeans(emb, 200, algorithm=algorithm, n_iters=12, seed=7)
    passes, start_pass, plain = [], fast_loop._start_pass, StageRun.save
    monkeypatch.setattr(fast_loop, "_start_pass", lambda *args: passes.append(args) or start_pass(*args))
    whole = dc.compute(node, store=tmp_path / "whole.zarr")
    whole_passes = len(passes)

    saved = {}

    def save(self, **checkpoint):
        plain(self, **checkpoint)
        if "end" in checkpoint and is_last(checkpoint):
            saved.update(checkpoint)
            raise KeyboardInterrupt

    monkeypatch.setattr(StageRun, "save", save)
    with pytest.raises(KeyboardInterrupt):
        dc.compute(node, store=tmp_path / "run.zarr")
    monkeypatch.setattr(StageRun, "save", plain)
    resumed = dc.compute(node, store=tmp_path / "run.zarr")
    under_way = int(saved["iteration"] < saved["end"])  # when the run was interrupted
    assert len(passes) - whole_passes == whole_passes + under_way  # no other was run twice
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
