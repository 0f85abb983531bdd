"""Builders are lazy: what they return is described, combined and planned without a task or a file."""

from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

import daskcurate as dc

N, DIM = 60, 6


@pytest.fixture
def emb(pool):
    """A pool, ingested before anything is forbidden."""
    x = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    return pool(x, chunk_rows=25)


@pytest.fixture
def nothing_runs(emb, client, monkeypatch, tmp_path):
    """Let nothing be computed, submitted or written."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was computed")

    for name in ("compute", "persist", "submit", "map", "scatter", "gather", "_graph_to_futures"):
        monkeypatch.setattr(Client, name, refuse)
    for name in (
        "dask.base.compute",
        "dask.compute",
        "dask.persist",
        "dask.local.get_sync",
        "dask.threaded.get",
    ):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("daskcurate.runner.client_for", refuse)
    before = sorted(tmp_path.rglob("*"))
    with dask.config.set(scheduler=refuse):
        yield
    assert sorted(tmp_path.rglob("*")) == before


def stages(emb) -> dict:
    """Return one node of every kind."""
    rng = np.random.default_rng(1)
    flat = dc.kmeans(emb, 6, metric="cosine", n_init=2, tol=0.1)
    given = dc.Clustering.from_arrays(emb, rng.standard_normal((3, DIM)), rng.integers(0, 3, N))
    found = {
        "flat": flat,
        "parallel": dc.kmeans(emb, 6, init="k-means||"),
        "from centroids": dc.kmeans(emb, 2, init=rng.standard_normal((2, DIM))),
        "given": given,
        "dedup": dc.semantic_dedup(emb, flat, eps=0.05),
        "scored": dc.semantic_dedup(emb, given, eps=0.05, keep=rng.random(N), rule="connected"),
        "masked": dc.semantic_dedup(emb, flat, eps=0.05, rule="greedy", within=rng.random(N) < 0.5),
        "lazily masked": dc.kmeans(emb, 2, within=da.arange(N, chunks=7) % 2 == 0),
    }
    found["threshold"] = found["dedup"].at(0.3)
    found["prune"] = dc.density_prune(flat, keep_fraction=0.5, within=found["dedup"])
    found["prototypes"] = dc.prototype_prune(given, target_size=9, within=found["threshold"])
    found["random"] = dc.random_prune(emb, target_size=9, within=found["prune"])
    tree = dc.hierarchical_kmeans(
        emb, [9, 4, 2], sample_sizes=[3, 2, 1], n_resamples=2, within=found["prune"]
    )
    found["tree"] = tree
    found["split"] = dc.hierarchical_kmeans(emb, [3, 2], n_splits=[2, 1])
    found["picks"] = dc.hierarchical_sample(tree, 20, multiplier=2, strategy="closest")
    found["flat picks"] = dc.hierarchical_sample(flat, 20, within=found["dedup"])
    found["given tree"] = dc.Hierarchy.from_labels([rng.integers(0, 4, N), rng.integers(0, 2, 4)], emb)
    found["labels alone"] = dc.Hierarchy.from_labels([rng.integers(0, 4, N), rng.integers(0, 2, 4)])
    found["picks of labels"] = dc.hierarchical_sample(found["labels alone"], 10)
    found["from mask"] = dc.Selection.from_mask(rng.random(N) < 0.5, emb=emb)
    found["from dask mask"] = dc.Selection.from_mask(da.ones(N, dtype=bool), emb=emb)
    found["from indices"] = dc.Selection.from_indices([3, 3, 0], emb)
    found["and"] = found["dedup"] & found["from mask"]
    found["or"] = found["picks"] | found["random"]
    found["not"] = ~(found["and"] | found["picks of labels"])
    return found


def test_every_builder_is_lazy(emb, nothing_runs):
    for name, node in stages(emb).items():
        assert not node.is_computed, name
        assert "lazy" in repr(node), name
        assert node.n_rows == N, name
        assert len(node.fingerprint) == 32


def test_the_same_settings_have_the_same_fingerprint(emb, nothing_runs):
    first, second = stages(emb), stages(dc.open_embeddings(Path(emb.path)))
    assert {name: node.fingerprint for name, node in first.items()} == {
        name: node.fingerprint for name, node in second.items()
    }
    assert len({node.fingerprint for node in first.values()}) == len(first)


def test_every_builder_is_planned(emb, nothing_runs, tmp_path):
    for name, node in stages(emb).items():
        plan = dc.plan(node, memory_limit="2GiB", n_workers=2, store=tmp_path / "run.zarr")
        assert plan.fits, name
        assert plan.stages, name
        for stage in plan.stages:
            assert all(isinstance(v, int) for v in (stage.rows, stage.bytes_read, stage.flops, stage.tasks))
            assert 0 < stage.rows <= N, name
            assert stage.tasks > 0
            assert stage.peak_memory > 0
            assert stage.disk > 0
            assert stage.stage in str(plan)


def test_a_plan_lists_each_stage_once_in_order(emb, nothing_runs):
    found = stages(emb)
    plan = dc.plan(found["picks"], found["prune"], found["flat"])
    assert [stage.stage for stage in plan.stages] == [
        "k-means 6",
        "dedup eps 0.05",
        "prune by intra*inter",
        "k-means 9",
        "k-means 4 (level 2)",
        "k-means 2 (level 3)",
        "sample 20",
    ]


def test_a_plan_of_a_given_client(emb, client):
    limits = dc.plan(stages(emb)["flat"], client=client).limits
    assert (limits.n_workers, limits.n_threads, limits.worker_memory) == (2, 2, 2 << 30)


def test_repr_tells_the_settings(emb, nothing_runs):
    found = stages(emb)
    assert "eps=0.05" in repr(found["dedup"])
    assert "metric='cosine'" in repr(found["flat"])
    assert repr(found["tree"]) == "<Hierarchy of 9 / 4 / 2 clusters, lazy>"
    assert repr(found["labels alone"]) == "<Hierarchy of 4 / 2 clusters, lazy>"


def test_a_selection_is_true_while_lazy(emb, nothing_runs):
    assert stages(emb)["dedup"]


def test_another_setting_is_another_fingerprint(emb, nothing_runs):
    flat = dc.kmeans(emb, 6)
    dedups = [
        dc.semantic_dedup(emb, flat, eps=0.1),
        dc.semantic_dedup(emb, flat, eps=0.2),
        dc.semantic_dedup(emb, dc.kmeans(emb, 6, seed=1), eps=0.1),
        dc.semantic_dedup(emb, flat, eps=0.1, within=np.ones(N, bool)),
        dc.semantic_dedup(emb, flat, eps=0.1, keep="easy"),
        dc.semantic_dedup(emb, flat, eps=0.1, keep=np.zeros(N)),
    ]
    assert len({node.fingerprint for node in dedups}) == len(dedups)


def test_another_pool_is_another_fingerprint(emb, pool):
    x = emb.array.compute()
    assert dc.kmeans(pool(x, chunk_rows=25), 6).fingerprint == dc.kmeans(emb, 6).fingerprint
    x[7, 0] += 1
    assert dc.kmeans(pool(x, chunk_rows=25), 6).fingerprint != dc.kmeans(emb, 6).fingerprint


def test_a_dask_mask_is_computed_with_the_stage(emb, client, tmp_path):
    wanted = np.arange(N) % 3 == 0
    lazy = dc.kmeans(emb, 4, within=da.from_array(wanted, chunks=7))
    flat = dc.compute(lazy, store=tmp_path / "run.zarr")
    assert np.array_equal(flat.labels.compute() >= 0, wanted)
    again = dc.kmeans(emb, 4, within=da.from_array(wanted, chunks=7))
    assert again.fingerprint == lazy.fingerprint
