"""K-means over Dask: equal to NumPy's for any chunking, and to float64 oracles."""

from collections import Counter

import numpy as np
import pytest
from oracles import blobs, check_result, oracle

import daskcurate as dc
from daskcurate import fitting, lloyd_loop, rows
from daskcurate.kernels import assign
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.planning import Limits
from daskcurate.remembering import Table
from daskcurate.rows import Block
from daskcurate.store import write_scratch

METRICS = ("l2", "cosine")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
@pytest.mark.parametrize("local", [True, False], ids=["one task", "map-reduce"])
def test_results_are_consistent(client, pool, tmp_path, monkeypatch, metric, init, local):
    if not local:
        monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    x = blobs(0)
    emb = pool(x, chunk_rows=97)
    found = dc.compute(
        dc.kmeans(emb, 12, metric=metric, init=init, n_iters=8, seed=3), store=tmp_path / "run.zarr"
    )
    check_result(x, found, metric)
    assert (found.sizes > 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 599, 600])
def test_dask_equals_numpy_for_any_chunking(client, pool, tmp_path, monkeypatch, metric, chunk_rows):
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    x = blobs(1, n=600 if chunk_rows > 1 else 60)
    unit = assign.unit_rows(x) if metric == "cosine" else x
    seeds = unit[:9]
    expected = lloyd_in_memory([unit], seeds, metric, 6).centroids
    emb = pool(x, chunk_rows=chunk_rows)
    found = dc.compute(dc.kmeans(emb, 9, metric=metric, init=x[:9], n_iters=6), store=tmp_path / "run.zarr")
    np.testing.assert_allclose(found.centroids, expected, atol=1e-5, rtol=1e-5)


def test_one_task_and_map_reduce_agree_bit_for_bit(client, pool, tmp_path, monkeypatch):
    emb = pool(blobs(2), chunk_rows=61)
    node = dc.kmeans(emb, 10, n_iters=7, seed=5)
    local = dc.compute(node, store=tmp_path / "a.zarr")
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    spread = dc.compute(node, store=tmp_path / "b.zarr")
    np.testing.assert_array_equal(local.centroids, spread.centroids)
    np.testing.assert_array_equal(np.asarray(local.labels), np.asarray(spread.labels))
    np.testing.assert_array_equal(np.asarray(local.distances), np.asarray(spread.distances))


def test_exactly_n_iters_updates_without_a_tolerance(client, pool, tmp_path):
    x = blobs(3, spread=2.0)
    emb = pool(x)
    for n_iters in (0, 1, 3):
        found = dc.compute(dc.kmeans(emb, 15, init=x[:15], n_iters=n_iters), store=tmp_path / "run.zarr")
        expected = x[:15].astype(np.float64)
        for _ in range(n_iters):
            labels = oracle(x, expected, "l2").argmin(axis=1)
            expected = np.stack([x[labels == j].astype(np.float64).mean(axis=0) for j in range(15)])
        np.testing.assert_allclose(found.centroids, expected, atol=1e-4)


@pytest.mark.parametrize("local", [True, False], ids=["one task", "map-reduce"])
def test_tol_stops_the_loop(client, pool, tmp_path, monkeypatch, local):
    if not local:
        monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    emb = pool(blobs(4, n=1500, spread=2.0), chunk_rows=400)
    full = dc.compute(dc.kmeans(emb, 40, n_iters=60), store=tmp_path / "run.zarr")
    early = dc.compute(dc.kmeans(emb, 40, n_iters=60, tol=0.02), store=tmp_path / "run.zarr")
    assert full.inertia < early.inertia < 1.1 * full.inertia
    if not local:
        assert early.attributes["tasks"] < full.attributes["tasks"]


def test_the_best_of_several_restarts_is_kept(client, pool, tmp_path):
    emb = pool(blobs(5, n=400, centres=25))
    one = [
        dc.compute(dc.kmeans(emb, 25, init="random", seed=seed), store=tmp_path / "run.zarr").inertia
        for seed in range(3)
    ]
    best = dc.compute(dc.kmeans(emb, 25, init="random", n_init=12), store=tmp_path / "run.zarr").inertia
    assert best <= min(one) * 1.02
    assert best < np.mean(one)


@pytest.mark.parametrize("local", [True, False], ids=["one task", "map-reduce"])
def test_empty_clusters_are_seeded_again(client, pool, tmp_path, monkeypatch, local):
    if not local:
        monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    x = blobs(6)
    init = np.full((10, 5), 1e3, dtype=np.float32)
    init[0] = x.mean(axis=0)
    emb = pool(x, chunk_rows=150)
    found = dc.compute(dc.kmeans(emb, 10, init=init, n_iters=5), store=tmp_path / "run.zarr")
    check_result(x, found, "l2")
    assert (found.sizes > 0).all()
    still = dc.compute(dc.kmeans(emb, 10, init=init, n_iters=0), store=tmp_path / "run.zarr")
    assert (still.sizes > 0).all()


def test_fewer_distinct_rows_than_clusters(client, pool, tmp_path):
    x = np.repeat(np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32), 20, axis=0)
    found = dc.compute(dc.kmeans(pool(x), 7), store=tmp_path / "run.zarr")
    assert found.inertia == pytest.approx(0, abs=1e-12)
    assert found.n_clusters == 7
    assert sorted(found.sizes.tolist()) == [0, 0, 0, 0, 20, 20, 20]


def test_as_many_clusters_as_rows(client, pool, tmp_path):
    x = blobs(7, n=30)
    found = dc.compute(dc.kmeans(pool(x, chunk_rows=7), 30), store=tmp_path / "run.zarr")
    assert sorted(found.sizes.tolist()) == [1] * 30
    assert found.inertia == pytest.approx(0, abs=1e-9)


def test_a_single_row_and_a_single_cluster(client, pool, tmp_path):
    found = dc.compute(dc.kmeans(pool(np.array([[3, 4]], np.float32)), 1), store=tmp_path / "run.zarr")
    np.testing.assert_array_equal(found.centroids, [[3, 4]])
    x = blobs(8, n=50)
    one = dc.compute(dc.kmeans(pool(x), 1), store=tmp_path / "run.zarr")
    np.testing.assert_allclose(one.centroids[0], x.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_within_clusters_a_part_of_the_rows(client, pool, tmp_path, metric, dtype):
    x = blobs(9)
    emb = pool(x, chunk_rows=83, dtype=dtype)
    mask = np.random.default_rng(0).random(len(x)) < 0.3
    mask[83:166] = False  # a chunk without any row
    found = dc.compute(dc.kmeans(emb, 6, metric=metric, within=mask), store=tmp_path / "run.zarr")
    check_result(np.asarray(emb.array), found, metric, mask)


def test_within_fewer_rows_than_clusters_lowers_k_with_a_warning(client, pool, tmp_path):
    x = blobs(10, n=50)
    mask = np.zeros(50, bool)
    mask[[3, 17, 40]] = True
    node = dc.kmeans(pool(x), 8, within=mask)
    with pytest.warns(UserWarning, match="only 3 rows to cluster, so 3 clusters instead of 8"):
        found = dc.compute(node, store=tmp_path / "run.zarr")
    assert found.n_clusters == 3
    assert found.centroids.shape == (3, 5)
    assert found.attributes["warnings"]


def test_within_no_row_at_all_is_an_error(client, pool, tmp_path):
    node = dc.kmeans(pool(blobs(10, n=50)), 2, within=np.zeros(50, bool))
    with pytest.raises(ValueError, match="no row is left to cluster"):
        dc.compute(node, store=tmp_path / "run.zarr")


def test_rows_that_do_not_fit_are_read_again_by_every_pass(client, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    emb = pool(blobs(11), chunk_rows=100)
    kept = dc.compute(dc.kmeans(emb, 5, n_iters=3), store=tmp_path / "kept.zarr")
    loaded, load_block = Counter(), rows.load_block

    def load(source, start, *args):
        loaded[start] += 1
        return load_block(source, start, *args)

    monkeypatch.setattr(Limits, "holds", lambda *_: False)
    monkeypatch.setattr(rows, "load_block", load)
    read = dc.compute(dc.kmeans(emb, 5, n_iters=3), store=tmp_path / "read.zarr")
    assert min(loaded.values()) > 1
    np.testing.assert_array_equal(np.asarray(kept.labels), np.asarray(read.labels))
    np.testing.assert_array_equal(kept.centroids, read.centroids)


def test_large_pools_are_seeded_on_a_sample_and_say_so(client, pool, tmp_path, monkeypatch):
    from daskcurate import seeds

    monkeypatch.setattr(seeds, "WHOLE_BYTES", 4000)
    emb = pool(blobs(12), chunk_rows=100)
    with pytest.warns(UserWarning, match="runs on a uniform sample of 200 of 600 rows"):
        found = dc.compute(dc.kmeans(emb, 8), store=tmp_path / "run.zarr")
    assert (found.sizes > 0).all()


def test_scalable_seeding_is_about_as_good_as_greedy(client, pool, tmp_path):
    emb = pool(blobs(13, n=3000, centres=30), chunk_rows=500)
    found = [
        dc.compute(dc.kmeans(emb, 30, init=init, n_iters=10), store=tmp_path / "run.zarr").inertia
        for init in ("k-means++", "k-means||", "random")
    ]
    assert found[1] < 1.3 * found[0]
    assert found[1] < found[2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("moved", [[0], [3, 17], list(range(5, 25))])
def test_rows_are_assigned_again_after_centroids_of_no_row_moved(metric, moved, tmp_path):
    rng = np.random.default_rng(len(moved))
    x = assign.unit_rows(rng.standard_normal((600, 12)).astype(np.float32))
    centroids = assign.unit_rows(rng.standard_normal((40, 12)).astype(np.float32))
    centroids[1] = centroids[2]  # a tie
    kept = np.delete(np.arange(40), moved)
    before = kept[assign.nearest(x, centroids[kept], metric)]
    centroids[moved] = x[: len(moved)]
    write_scratch(f"{tmp_path}/centroids", centroids)
    found = lloyd_loop._assigned_again(
        Block(np.arange(600), x),
        lloyd_loop.Assigned(before.astype(np.int32), np.zeros(600), 0.0),
        Table(f"{tmp_path}/centroids", metric, "token"),
        np.array(moved),
    )
    np.testing.assert_array_equal(found.labels, assign.nearest(x, centroids, metric))
    assert found.labels[: len(moved)].tolist() == moved
    assert (found.labels != before).sum() > len(moved)
