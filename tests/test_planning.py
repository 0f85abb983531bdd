"""Plans: integers from sizes, checked against plain counting and against runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import blobs

import daskcurate as dc
from daskcurate import planning
from daskcurate.kmeans_planning import kmeans_plan
from daskcurate.planning import Limits, PlanError


@given(st.integers(0, 2000))
def test_tree_tasks_by_brute_force(parts):
    left, tasks = parts, 0
    while left > 1:
        groups = [list(range(i, min(i + 8, left))) for i in range(0, left, 8)]
        tasks += len(groups)
        left = len(groups)
    assert planning.tree_tasks(parts) == tasks


def test_a_plan_says_what_each_stage_takes(client, pool):
    emb = pool(blobs(0))
    flat = dc.kmeans(emb, 10, n_iters=5)
    dedup = dc.semantic_dedup(emb, flat, eps=0.1)
    prune = dc.density_prune(flat, keep_fraction=0.5, within=dedup)
    tree = dc.hierarchical_kmeans(emb, [20, 4], within=prune)
    found = dc.plan(dc.hierarchical_sample(tree, 30))
    assert [stage.stage for stage in found.stages] == [
        "k-means 10", "dedup eps 0.1", "prune by intra*inter", "k-means 20", "k-means 4 (level 2)", "sample 30",
    ]  # fmt: skip
    assert all(stage.rows > 0 and stage.tasks > 0 and stage.peak_memory > 0 for stage in found.stages)
    first = found.stages[0]
    assert first.rows == 600
    assert first.flops >= 2 * 600 * 10 * 5 * 5
    assert found.fits
    assert "dedup eps 0.1" in str(found)


def test_the_plan_leaves_out_what_is_finished(client, pool, tmp_path):
    emb = pool(blobs(0))
    flat = dc.kmeans(emb, 10)
    dedup = dc.semantic_dedup(emb, flat, eps=0.1)
    dc.compute(flat, store=tmp_path / "run.zarr")
    assert [s.stage for s in dc.plan(dedup, store=tmp_path / "run.zarr").stages] == ["dedup eps 0.1"]


def test_a_plan_that_cannot_fit_is_refused_with_stage_and_bytes(client, pool, tmp_path):
    emb = pool(np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32))
    flat = dc.kmeans(emb, 100)
    with pytest.raises(PlanError, match=r"stage 'k-means 100' needs \d+ bytes .* limit is 157286400 bytes"):
        dc.plan(flat, memory_limit="150MiB")
    with pytest.raises(MemoryError):
        dc.plan(flat, memory_limit=1000)


def test_compute_refuses_what_cannot_fit_before_anything_is_written(client, pool, tmp_path, monkeypatch):
    from daskcurate import runner

    monkeypatch.setattr(runner, "cluster_limits", lambda client: Limits(2, 2, 100 << 20))
    with pytest.raises(PlanError, match="k-means"):
        dc.compute(dc.kmeans(pool(blobs(0)), 5), store=tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_rows_beyond_memory_are_not_planned_to_be_kept():
    config = dc.config.KMeansConfig(n_clusters=1000)
    common = {
        "n": 10**9, "d": 1024, "itemsize": 2, "chunk_rows": 32768, "config": config,
        "split_bytes": 128 << 20,
    }  # fmt: skip
    found = kmeans_plan("k", limits=Limits(16, 16, 8 << 30), **common)
    assert found.peak_memory < 8 << 30
    assert found.bytes_read == 10**9 * 1024 * 2 * (50 + 2)
    assert found.disk == 10**9 * 8 + 1000 * (1024 * 4 + 8)


def test_limits_shrink_with_the_workers():
    small, large = Limits(1, 1, 512 << 20), Limits(1, 1, 64 << 30)
    assert small.part_bytes < large.part_bytes == planning.PART_BYTES
    on_gpu = Limits(1, 1, 64 << 30, on_gpu=True)
    assert on_gpu.part_bytes == planning.DEVICE_PART_BYTES > large.part_bytes
    assert small.small_regroup_bytes < large.small_regroup_bytes == planning.SMALL_REGROUP_BYTES
    assert small.rank_rows < large.rank_rows == planning.RANK_ROWS
    assert Limits(1, 4, 8 << 30, 4).thread_memory < Limits(1, 1, 8 << 30, 1).thread_memory
    assert Limits.local().worker_memory > 0
