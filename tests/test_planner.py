"""Plans that say seconds, and the measuring behind them."""

import numpy as np
import pytest
from oracles import blobs

import daskcurate as dc
from daskcurate import calibration, planner
from daskcurate.kmeans_planning import lloyd_passes
from daskcurate.planning import ALONE_GAIN, Limits, StagePlan


def test_a_calibrated_plan_says_seconds_and_a_plain_one_does_not(client, pool, monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.01)
    node = dc.kmeans(pool(blobs(0)), 6)
    plain = dc.plan(node)
    assert plain.seconds is None
    assert "seconds" not in str(plain)
    found = dc.plan(node, calibrate=True)
    assert found.seconds is not None
    assert 0 < found.seconds[0] < 600
    assert str(found).splitlines()[0].endswith("seconds")
    rates = planner.measure(client, 5)
    assert min(rates.assign, rates.listed, rates.seed, rates.compare, rates.stream) > 0
    assert min(rates.task, rates.round) >= 0


def test_without_workers_nothing_can_be_measured(pool):
    with pytest.raises(ValueError, match="calibrate=True measures workers, and there is no client"):
        dc.plan(dc.kmeans(pool(blobs(0)), 6), calibrate=True)


def test_seconds_are_shared_by_threads_that_have_a_part():
    rates = calibration.Machine(assign=10, listed=1, seed=2, compare=1, stream=1, task=0.5, round=3)
    stage = StagePlan(
        stage="s", rows=1, bytes_read=0, flops=0, tasks=4, peak_memory=0, disk=0,
        work={"assign": 120, "serial-seed": 10, "alone-seed": 8, "rounds": 2}, parts=3,
    )  # fmt: skip
    one, two = Limits(1, 1, None), Limits(2, 2, None, host_threads=2)
    fixed = 4 * 0.5 + 10 / 2 + 2 * 3
    assert stage.seconds(rates, one) == pytest.approx(fixed + 120 / 10 + 8 / 2)
    assert stage.seconds(rates, two) == pytest.approx(  # 3 parts: 2 turns
        fixed + 120 / (10 * 1.5) + 8 / (2 * (1 + ALONE_GAIN))
    )


def test_later_lloyd_passes_are_expected_to_cost_less():
    assert lloyd_passes(0, 10) == 0
    assert lloyd_passes(1, 10) == 1
    for rows in (5.0, 50.0, 500.0):
        costs = np.diff([lloyd_passes(n, rows) for n in range(40)])
        assert (np.diff(costs) <= 1e-12).all()
        assert costs[0] == 1
    assert lloyd_passes(30, 10) < lloyd_passes(30, 100) < 30


def test_more_work_is_planned_for_more_rows_and_clusters(pool):
    small, large = pool(blobs(1, n=300)), pool(blobs(1, n=600))
    for algorithm in ("lloyd", "fast", "two-level"):
        plans = [
            dc.plan(dc.kmeans(emb, k, algorithm=algorithm))
            for emb, k in ((small, 10), (large, 10), (large, 40))
        ]
        flops = [found.stages[0].flops for found in plans]
        assert flops[0] < flops[1] < flops[2]
