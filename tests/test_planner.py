"""Plans that say seconds, and the measuring behind them."""

import os

import numpy as np
import pytest
from distributed import get_task_stream
from oracles import blobs

import daskcurate as dc
from daskcurate import calibration, kmeans_planning, planner
from daskcurate.kernels import bounded, lloyd, seeding
from daskcurate.kernels.assign import Scorer, assign
from daskcurate.kernels.bounded import reassigned
from daskcurate.kmeans_planning import kmeans_plan, lloyd_passes, lloyd_updates
from daskcurate.planning import Limits, StagePlan


def test_a_calibrated_plan_says_seconds_and_a_plain_one_does_not(client, pool, monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.01)
    monkeypatch.setattr(calibration, "BLOCK", 4096)
    node = dc.kmeans(pool(blobs(0)), 6)
    plain = dc.plan(node)
    assert plain.seconds is None
    assert "seconds" not in str(plain)
    found = dc.plan(node, calibrate=True)
    assert found.seconds is not None
    assert 0 < found.seconds[0] < 600
    assert str(found).splitlines()[0].endswith("seconds")
    rates = planner.measure(client, 5)
    measured = {name: value for name, value in vars(rates).items() if name not in ("task", "round", "alone")}
    assert min(measured.values()) > 0
    assert min(rates.task, rates.round) >= 0
    assert rates.alone.keys() == {"assign", "seed", "stream", "match", "cluster"}
    assert min(rates.alone.values()) > 0
    held = [name for worker in client.cluster.workers.values() for name in os.listdir(worker.local_directory)]
    assert not any("calibrate" in name for name in held)  # nothing is left


def test_without_workers_nothing_can_be_measured(pool):
    with pytest.raises(ValueError, match="calibrate=True measures workers, and there is no client"):
        dc.plan(dc.kmeans(pool(blobs(0)), 6), calibrate=True)


def test_seconds_are_shared_by_threads_that_have_a_part():
    rates = calibration.Machine(
        assign=10, listed=1, seed=2, compare=1, match=1, cluster=1, stream=1, regroup=1, store=1, read=1, write=4,
        task=0.5, round=3, alone={"seed": 5},
    )  # fmt: skip
    stage = StagePlan(
        stage="s", rows=1, bytes_read=0, flops=0, tasks=4, peak_memory=0, disk=0,
        work={"assign": 120, "serial-seed": 10, "alone-seed": 8, "alone-write": 2, "rounds": 2}, parts=3,
    )  # fmt: skip
    one, two = Limits(1, 1, None), Limits(2, 2, None, host_threads=2)
    fixed = 4 * 0.5 + 10 / 2 + 2 * 3 + 2 / 4
    assert stage.seconds(rates, one) == pytest.approx(fixed + 120 / 10 + 8 / 2)
    assert stage.seconds(rates, two) == pytest.approx(  # 3 parts: 2 turns
        fixed + 120 / (10 * 1.5) + 8 / 5
    )


def test_later_lloyd_passes_are_expected_to_cost_less():
    assert lloyd_passes(0, 10) == 0
    assert lloyd_passes(1, 10) == 1
    for rows in (5.0, 50.0, 500.0):
        costs = np.diff([lloyd_passes(n, rows) for n in range(40)])
        assert (np.diff(costs) <= 1e-12).all()
        assert costs[0] == 1
        updates = [lloyd_updates(n, rows) for n in range(200)]
        assert updates == sorted(updates)
        assert all(lloyd_passes(n, rows) <= lloyd_updates(n, rows) <= n for n in range(1, 200))
    assert lloyd_passes(30, 10) < lloyd_passes(30, 100) < 30
    assert lloyd_updates(200, 5) < lloyd_updates(200, 100) < 200


@pytest.mark.parametrize("slower", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("rows", [0, 1, 12.5, 100, 1e6])
def test_passes_that_are_not_counted_would_add_nothing(monkeypatch, rows, slower):
    n_iters = 10_000
    counted = lloyd_passes(n_iters, rows, slower)
    monkeypatch.setattr(kmeans_planning, "COUNTED_FALLS", 10**9)
    assert counted == lloyd_passes(n_iters, rows, slower) >= 1


def counted_passes(x, k, n_iters):
    """Return the work of Lloyd's passes over rows, counted."""
    centroids, found, moves, work = x[:k], None, None, 1.0
    for _ in range(n_iters):
        if found is None:
            found = assign(x, Scorer(centroids, "l2"))
        else:
            found, share = reassigned(x, Scorer(centroids, "l2"), found, moves)
            work += share
        sums, counts = lloyd.segment_sums(x, found.labels, k)
        before, centroids = centroids, lloyd.finalize(lloyd.Partial(sums, counts, 0.0), centroids, "l2")
        moves = lloyd.moves_of(before, centroids)
    return work


@pytest.mark.parametrize(("rows", "k"), [(2000, 200), (3000, 150), (4000, 100), (6000, 60)])
def test_the_work_of_lloyds_passes_is_foretold(rows, k):
    x = np.random.default_rng(0).random((rows, 64), dtype=np.float32)
    assert lloyd_passes(20, rows / k) == pytest.approx(counted_passes(x, k, 20), rel=0.25)


def test_the_share_of_a_bounded_pass_is_of_its_products(monkeypatch):
    rng = np.random.default_rng(0)
    x, moves = rng.standard_normal((500, 8)).astype(np.float32), np.zeros(20)
    scorer = Scorer(x[:20], "l2")
    found = assign(x, scorer)
    again, share = reassigned(x, scorer, found, moves)  # nothing moved: every row keeps its label
    assert share == 0
    np.testing.assert_array_equal(again.labels, found.labels)
    assert reassigned(x, scorer, found, moves + 100)[1] == 1  # no bound is left
    asked = []
    monkeypatch.setattr(bounded, "assign", lambda rows, *_: asked.append(len(rows)) or assign(rows, scorer))
    moves[3] = 100  # one centroid is compared with every row that keeps its bound
    share = reassigned(x, scorer, found, moves)[1]
    assert sum(asked) / 500 <= share <= sum(asked) / 500 + 1 / 20


def test_rows_in_separate_groups_settle_sooner():
    rng = np.random.default_rng(0)
    even = rng.random((1024, 16), dtype=np.float32)
    apart = blobs(0, n=1024)
    usual, sooner = (calibration.settling(x.astype(np.float32)) for x in (even, apart))
    assert usual == calibration.settling(even)  # counted, not timed
    assert sooner["passes"] < 0.75 * usual["passes"]
    assert sooner["updates"] <= usual["updates"]


def test_a_plan_is_shorter_for_rows_that_settle_sooner():
    rates = dict.fromkeys(
        ("assign", "listed", "seed", "compare", "match", "cluster", "stream", "regroup", "store", "read"), 1e9
    )
    config = dc.config.KMeansConfig(n_clusters=500, algorithm="lloyd", init="random", n_iters=30)
    limits = Limits(2, 2, None)  # alone in one task, and, of more rows, over the cluster
    for n in (20_000, 2_000_000):
        stage = kmeans_plan(
            "k", n=n, d=64, itemsize=4, chunk_rows=n // 8, config=config, limits=limits, split_bytes=0
        )
        usual, slower, sooner = (
            stage.seconds(calibration.Machine(**rates, write=1e9, task=0.1, round=0, **more), limits)
            for more in ({}, {"passes": 2.0}, {"passes": 0.3, "updates": 0.5})
        )
        assert sooner < usual < slower
        assert (stage.loops[0].update_tasks > 0) is (n > 20_000)
        loop = stage.loops[0].amounts(0.3, 0.5)
        assert loop["tasks"] < stage.tasks if "tasks" in loop else n == 20_000


def test_seeding_takes_longer_than_its_products_most_of_all_where_they_are_few():
    dear = [seeding.effort(8192, 64, k) / seeding.operations(8192, 64, k) for k in (10, 100, 400, 4000)]
    assert dear == sorted(dear, reverse=True)
    assert seeding.effort(8192, 768, 400) / seeding.operations(8192, 768, 400) < dear[2]
    assert dear[3] > 1


def test_the_rows_that_are_timed_are_the_pools_own(pool, monkeypatch):
    monkeypatch.setattr(calibration, "BLOCK", 128)
    x = np.arange(1, 1001, dtype=np.float16)[:, None] * np.ones(3, np.float16)
    emb = pool(x, chunk_rows=100, normalize=False)
    found = calibration.sample_rows(3, emb.rows)
    assert found.dtype == np.float16
    assert found.shape == (128, 3)
    assert {1, 1000} <= set(found[:, 0].tolist())
    assert (np.diff(found[:, 0]) > 0).all()
    few = pool(x[:100], normalize=False)
    for made_up in (calibration.sample_rows(3, few.rows), calibration.sample_rows(3)):
        assert made_up.shape == (128, 3)
        np.testing.assert_allclose(np.linalg.norm(made_up, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("rows", "mean"), [(1, 80), (17, 16), (1024, 16), (1024, 80), (4096, 80)])
def test_the_clusters_that_are_timed_hold_every_row(rows, mean):
    sizes = np.diff(calibration._uneven(rows, mean))
    assert sizes.sum() == rows
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()


def test_any_number_of_iterations_is_planned_at_once(pool):
    emb = pool(np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    for n_iters in (10**12, 10**400):  # counted one by one, the first alone takes days
        assert dc.plan(dc.kmeans(emb, 3, n_iters=n_iters, tol=1e-3)).stages[0].rows == 40


def test_a_selection_of_rows_by_their_cosines_reads_them_where_the_clustering_does_not_store_these(pool):
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    emb, labels = pool(x), np.arange(60) % 3
    plans = [
        dc.plan(
            dc.density_prune(dc.Clustering.from_arrays(emb, x[:3], labels, metric=metric), keep_fraction=0.5)
        )
        for metric in ("cosine", "l2")
    ]
    cosine, l2 = (found.stages[-1].work for found in plans)
    assert cosine["stream"] == 0 < l2["stream"]
    assert cosine["read"] < l2["read"]


@pytest.mark.parametrize("rows", [40, 400])
def test_a_plan_counts_the_tasks_that_a_run_makes(client, pool, tmp_path, rows):
    emb = pool(blobs(0, n=rows), chunk_rows=rows // 4)
    flat = dc.compute(dc.kmeans(emb, 5), store=tmp_path / "flat.zarr")
    for node in (
        dc.kmeans(emb, 6),
        dc.kmeans(emb, 6, init="random"),
        dc.semantic_dedup(emb, flat, eps=0.1),
        dc.density_prune(flat, keep_fraction=0.5),
        dc.hierarchical_sample(flat, 10),
    ):
        planned = dc.plan(node).stages[-1].tasks
        with get_task_stream(client) as stream:
            done = dc.compute(node, store=tmp_path / "run.zarr")
        ran = {record["key"] for record in stream.data}
        assert abs(len(ran) - planned) <= 0.25 * planned + 2, node
        assert done.attributes["tasks"] == len(ran), node


def test_more_work_is_planned_for_more_rows_and_clusters(pool):
    small, large = pool(blobs(1, n=300)), pool(blobs(1, n=600))
    for algorithm in ("lloyd", "fast", "two-level"):
        plans = [
            dc.plan(dc.kmeans(emb, k, algorithm=algorithm))
            for emb, k in ((small, 10), (large, 10), (large, 40))
        ]
        flops = [found.stages[0].flops for found in plans]
        assert flops[0] < flops[1] < flops[2]
