"""Plans that say seconds, and the measuring behind them."""

import os

import numpy as np
import pytest
from distributed import get_task_stream
from oracles import blobs

import daskcurate as dc
from daskcurate import calibration, planner
from daskcurate.kmeans_planning import lloyd_passes, lloyd_updates
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
