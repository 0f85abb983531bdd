"""Plans: integers from sizes, checked against plain counting and against runs."""

import dask
import numpy as np
import psutil
import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from oracles import blobs

import daskcurate as dc
from daskcurate import planning
from daskcurate.kernels.centroids import PIECE_BYTES
from daskcurate.kmeans_planning import kmeans_plan
from daskcurate.local_cluster import make_local_cluster
from daskcurate.planning import PROCESS_BYTES, Limits, PlanError
from daskcurate.settings import MemoryShares, shuffle_buffers
from daskcurate.worker_limits import LATER_BYTES, cluster_limits


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
    refused = r"stage 'k-means 100' needs \d+ bytes .* may use 125829120 bytes .* which is 157286400 bytes"
    with pytest.raises(PlanError, match=refused + ".* alone take .* give the workers more memory"):
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


def plan_of(limits, n=100_000):
    config = dc.config.KMeansConfig(n_clusters=1000, init="random")
    return planning.Plan(
        [
            kmeans_plan(
                "k", n=n, d=256, itemsize=4, chunk_rows=65536, config=config, limits=limits, split_bytes=0
            )
        ],
        limits,
    )


def test_a_plan_fits_if_dask_will_not_pause_the_workers_for_it():
    for pause in (0.5, 0.8, 1.0):
        shares = MemoryShares(target=0.01, spill=0.02, pause=pause)  # no blocks are held
        needed = plan_of(Limits(2, 2, 1 << 30, shares=shares)).stages[0].peak_memory
        least = -(-needed * 100 // round(100 * pause))
        assert plan_of(Limits(2, 2, least + 64, shares=shares)).fits
        assert not plan_of(Limits(2, 2, least - 64, shares=shares)).fits
        found = str(plan_of(Limits(2, 2, 2 * needed, shares=shares)))
        assert f"({planning.human(int(2 * needed * pause))} usable) a worker" in found


def test_pruning_is_planned_with_its_centroids_and_with_rows_that_it_reads(pool):
    emb = pool(blobs(0), chunk_rows=300)
    limits = Limits(1, 1, 4 << 30, process_bytes=0)
    few, many = (
        dc.density_prune(dc.kmeans(emb, 10, metric="cosine"), keep_fraction=0.5, n_neighbors=n).plan(limits)
        for n in (5, 20)
    )
    assert few.peak_memory > PIECE_BYTES
    assert few.peak_memory == many.peak_memory  # there are 9 others
    stored, measured = (
        dc.prototype_prune(dc.kmeans(emb, 10, metric=metric), keep_fraction=0.5).plan(limits).peak_memory
        for metric in ("cosine", "l2")
    )
    assert measured >= stored + 300 * emb.dim * emb.dtype.itemsize


def test_labels_made_elsewhere_are_planned_with_the_sums_of_their_clusters(pool):
    emb = pool(blobs(0), chunk_rows=300)
    labels = np.arange(len(emb)) % 50
    labels[0] = 49_999
    limits = Limits(1, 1, 4 << 30, process_bytes=0)
    alone, measured = (
        dc.Hierarchy.from_labels([labels], emb=e).levels[0].plan(limits).peak_memory for e in (None, emb)
    )
    # partial sums of 8 blocks of rows, and their sum, in float64
    assert measured >= 9 * 50_000 * emb.dim * 8 > alone


def test_a_larger_process_leaves_less_for_data():
    plain, large = (Limits(1, 2, 4 << 30, 2, process_bytes=size << 20) for size in (260, 1260))
    assert large.thread_memory == plain.thread_memory - (500 << 20)
    assert plan_of(large).stages[0].peak_memory - plan_of(plain).stages[0].peak_memory == 1000 << 20


def test_blocks_are_held_only_where_they_are_not_spilled():
    limits = Limits(2, 2, 1000, shares=MemoryShares(target=0.6, spill=0.7, pause=0.8), process_bytes=0)
    assert limits.holds(1000, 100, 100)  # 600 a worker by themselves, 700 with all else
    assert not limits.holds(1002, 100, 0)
    assert not limits.holds(1000, 101, 0)
    assert not limits.holds(1000, 100, 101)
    assert Limits(2, 2, None).holds(1 << 60, 1 << 50, 1 << 50)


def test_rows_that_are_not_held_are_still_planned_for():
    few, many = (plan_of(Limits(2, 2, 900 << 20), n) for n in (100_000, 10_000_000))
    assert few.fits
    assert many.fits
    assert few.stages[0].bytes_read == 100_000 * 256 * 4
    assert many.stages[0].bytes_read > 10 * 10_000_000 * 256 * 4


def test_workers_say_what_they_may_use_and_what_they_hold_already(client, monkeypatch):
    found = cluster_limits(client)
    own = psutil.Process().memory_info().rss  # the workers of this client are threads of this process
    assert LATER_BYTES < found.process_bytes <= own + LATER_BYTES
    memory = {"target": 0.3, "spill": False, "pause": 0.9, "terminate": 0.85}
    with dask.config.set({f"distributed.worker.memory.{name}": share for name, share in memory.items()}):
        assert cluster_limits(client).shares == MemoryShares(target=0.3, spill=1.0, pause=0.85)
    with dask.config.set(
        {"distributed.p2p.comm.buffer": "1 GiB", "distributed.p2p.storage.buffer": "100 MiB"}
    ):
        assert cluster_limits(client).shuffle_buffers == 1124 << 20
    monkeypatch.setattr(client, "run", lambda *_, **__: {})  # none answers
    assert cluster_limits(client).shuffle_buffers == shuffle_buffers() == 64 << 20
    assert cluster_limits(client).shares == MemoryShares.configured()


def test_the_process_of_a_worker_is_planned_as_it_is():
    sizes = {"n_workers": 1, "memory_limit": "1GiB", "dashboard_address": "127.0.0.1:0"}
    with make_local_cluster(**sizes) as cluster, Client(cluster) as own:
        found = cluster_limits(own)
        held = own.run(_held_with_everything_loaded)
    assert found.shares == MemoryShares.configured()
    for planned in (PROCESS_BYTES, found.process_bytes):
        assert 0.6 * planned < max(held.values()) < planned


def _held_with_everything_loaded():
    import dask.dataframe  # noqa: F401
    import distributed.shuffle  # noqa: F401

    rows = np.ones((500, 500), np.float32)
    rows @ rows
    return psutil.Process().memory_info().rss


def test_limits_shrink_with_the_workers():
    small, large = Limits(1, 1, 512 << 20), Limits(1, 1, 64 << 30)
    assert small.part_bytes < large.part_bytes == planning.PART_BYTES
    on_gpu = Limits(1, 1, 64 << 30, on_gpu=True)
    assert on_gpu.part_bytes == planning.DEVICE_PART_BYTES > large.part_bytes
    assert small.small_regroup_bytes < large.small_regroup_bytes == planning.SMALL_REGROUP_BYTES
    assert small.rank_rows < large.rank_rows == planning.RANK_ROWS
    assert Limits(1, 4, 8 << 30, 4).thread_memory < Limits(1, 1, 8 << 30, 1).thread_memory
    assert Limits.local().worker_memory > 0
