"""Regrouping rows, in one task and through the shuffle, and the ranks built on it."""

import tracemalloc

import dask
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import blobs

import daskcurate as dc
from daskcurate import matching, planning, pool_blocks, regroup
from daskcurate.planning import Limits
from daskcurate.pool_tasks import POOL_MATCHES
from daskcurate.tasks import task


class Run:
    """What regroup needs of a stage's run."""

    def __init__(self, small, rank_rows=1 << 20):
        self.limits = Limits(2, 2, None)
        object.__setattr__(self, "limits", _Limits(small, rank_rows))

    def task(self, function, *args, name, key=0):
        return task(function, *args, name=name, key=f"test-{key}")

    def gather(self, tasks, step=""):
        return list(dask.compute(*tasks))

    def persist(self, tasks, step=""):
        return list(tasks)


class _Limits:
    def __init__(self, small, rank_rows):
        self.small_regroup_bytes, self.rank_rows = small, rank_rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("m", [0, 1, 17])
def test_cells_hold_rows_without_a_copy(dtype, m):
    rows = np.random.default_rng(0).standard_normal((m, 5)).astype(dtype)
    cells = pd.Series(regroup.to_cells(rows))
    np.testing.assert_array_equal(regroup.from_cells(cells, 5, np.dtype(dtype)), rows)
    order = np.random.default_rng(1).permutation(m)
    np.testing.assert_array_equal(regroup.from_cells(cells.iloc[order], 5, np.dtype(dtype)), rows[order])
    if m:
        np.testing.assert_array_equal(regroup.from_cells(cells.iloc[1:], 5, np.dtype(dtype)), rows[1:])


@pytest.mark.parametrize(
    ("meta", "nbytes"),
    [
        (matching.ROWS, planning.REGROUPED_ROW_BYTES),  # besides the embedding
        (pool_blocks.ROWS, planning.REGROUPED_ROW_BYTES),
        (matching.MATCHES, planning.MATCH_BYTES),
        (POOL_MATCHES, planning.POOL_MATCH_BYTES),
    ],
)
def test_rows_of_frames_take_the_bytes_that_plans_count(meta, nbytes):
    columns = [name for name in meta if name != "cells"]
    assert sum(meta[name].dtype.itemsize for name in columns) == nbytes
    m = 30_000
    values = np.random.default_rng(0).integers(0, 7, m)

    def halves():
        made = pd.DataFrame({name: values.astype(meta[name].dtype) for name in columns})
        assert made.memory_usage(index=False).sum() == nbytes * m
        return [made.iloc[: m // 2], made.iloc[m // 2 :]]

    tracemalloc.start()
    parts = regroup._split(halves(), 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(part) for part in parts) == m
    assert 2 * nbytes * m < peak < planning.REGROUP_COPIES * nbytes * m


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_partitions_are_contiguous_and_bounded(sizes, limit):
    sizes = np.array(sizes)
    partition = regroup.contiguous_partitions(sizes, limit)
    assert partition[0] == 0
    assert set(np.diff(partition)) <= {0, 1}
    for i in range(partition[-1] + 1):
        members = sizes[partition == i]
        assert len(members) == 1 or members.sum() <= limit


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=40))
def test_ranks_by_group_break_ties_by_position(rows):
    labels = np.array([a for a, _ in rows], dtype=np.int32)
    keys = np.array([b for _, b in rows], dtype=np.float64)
    found = regroup.ranks_by_group(labels, keys, np.arange(len(rows)))
    for i in range(len(rows)):
        before = [j for j in range(len(rows)) if labels[j] == labels[i] and (keys[j], j) < (keys[i], i)]
        assert found[i] == len(before)


@pytest.mark.parametrize(
    ("small", "rank_rows"),
    [
        pytest.param(1 << 30, 1000, id="one task-all rows"),
        pytest.param(1 << 30, 40, id="one task-whole clusters"),
        pytest.param(1 << 30, 5, id="one task-clusters in ranges"),
        pytest.param(0, 1000, id="shuffle-all rows", marks=pytest.mark.slow),
        pytest.param(0, 40, id="shuffle-whole clusters", marks=pytest.mark.slow),
        pytest.param(0, 5, id="shuffle-clusters in ranges"),
    ],
)
def test_ranks_in_clusters(client, small, rank_rows):
    rng = np.random.default_rng(0)
    counts = [50, 1, 120, 30]
    labels = [rng.integers(-1, 9, m).astype(np.int32) for m in counts]
    keys = [rng.integers(0, 6, m).astype(np.float64) for m in counts]
    sizes = np.bincount(np.concatenate(labels)[np.concatenate(labels) >= 0], minlength=9)
    run = Run(small, rank_rows)
    items = [
        run.task(regroup.Labelled, *pair, name="item", key=i)
        for i, pair in enumerate(zip(labels, keys, strict=True))
    ]
    lazy = regroup.rank_in_cluster(run, items, counts, sizes, f"ranks-{small}-{rank_rows}")
    found = np.concatenate(dask.compute(*lazy))
    label, key = np.concatenate(labels), np.concatenate(keys)
    expected = np.full(len(label), -1)
    inside = label >= 0
    expected[inside] = regroup.ranks_by_group(label[inside], key[inside], np.flatnonzero(inside))
    np.testing.assert_array_equal(found, expected)


def test_ranges_of_a_giant_cluster_are_bounded_even_where_all_keys_tie(client):
    counts = [4000, 3000]
    labels = [np.zeros(m, np.int32) for m in counts]
    keys = [np.full(m, 0.5) for m in counts]
    run = Run(1 << 30, 1000)
    items = [
        run.task(regroup.Labelled, *pair, name="giant", key=i)
        for i, pair in enumerate(zip(labels, keys, strict=True))
    ]
    ranges = regroup.rank_ranges(run, items, np.array([7000]), "giant")
    frames = [
        regroup._key_frame(regroup.Labelled(*pair), i, ranges)
        for i, pair in enumerate(zip(labels, keys, strict=True))
    ]
    sizes = np.bincount(pd.concat(frames)["partition"])
    assert len(sizes) == ranges.n_partitions >= 7
    assert sizes.max() <= 1300
    lazy = regroup.rank_in_cluster(run, items, counts, np.array([7000]), "giant-ranks")
    np.testing.assert_array_equal(np.concatenate(dask.compute(*lazy)), np.arange(7000))


@pytest.fixture
def shuffled(monkeypatch):
    """Limits under which everything goes through the shuffle, and clusters are compared in blocks."""
    monkeypatch.setattr(Limits, "small_regroup_bytes", property(lambda self: 0))
    monkeypatch.setattr(Limits, "rank_rows", property(lambda self: 100))


def test_stages_are_the_same_through_the_shuffle(client, pool, tmp_path, monkeypatch):
    emb = pool(blobs(0, n=500), chunk_rows=90)
    flat = dc.kmeans(emb, 7, metric="cosine")
    dedup = dc.semantic_dedup(emb, flat, eps=0.0005)
    prune = dc.density_prune(flat, keep_fraction=0.6, within=dedup)
    tree = dc.hierarchical_kmeans(emb, [20, 5], sample_sizes=[4, 2], n_resamples=1, within=prune)
    split = dc.hierarchical_kmeans(emb, [5], n_splits=[4])
    picks = dc.hierarchical_sample(tree, 40)
    nodes = (dedup, prune, split, picks)
    plain = dc.compute(*nodes, store=tmp_path / "a.zarr")
    monkeypatch.setattr(Limits, "small_regroup_bytes", property(lambda self: 0))
    monkeypatch.setattr(Limits, "rank_rows", property(lambda self: 100))
    other = dc.compute(*nodes, store=tmp_path / "b.zarr")
    for one, two in zip((plain[0], plain[1], plain[3]), (other[0], other[1], other[3]), strict=True):
        np.testing.assert_array_equal(np.asarray(one.counts), np.asarray(two.counts))
    np.testing.assert_array_equal(np.asarray(plain[0].max_similarity), np.asarray(other[0].max_similarity))
    np.testing.assert_array_equal(np.asarray(plain[0].duplicate_of), np.asarray(other[0].duplicate_of))
    np.testing.assert_array_equal(plain[2].levels[0].centroids, other[2].levels[0].centroids)
    np.testing.assert_array_equal(
        np.asarray(plain[2].levels[0].labels), np.asarray(other[2].levels[0].labels)
    )
    assert plain[2].levels[0].inertia == other[2].levels[0].inertia


@pytest.mark.parametrize(
    "rule", ["earlier", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("greedy", "connected"))]
)
def test_giant_clusters_are_compared_in_blocks_and_miss_no_pair(
    client, pool, tmp_path, monkeypatch, rule, shuffled
):
    from daskcurate import matching

    rng = np.random.default_rng(0)
    base = rng.standard_normal((40, 16))
    x = (base[rng.integers(0, 40, 1500)] + 0.12 * rng.standard_normal((1500, 16))).astype(np.float32)
    emb = pool(x, chunk_rows=350)
    flat = dc.Clustering.from_arrays(
        emb, np.ones((2, 16), np.float32), (np.arange(1500) % 50 == 0).astype(np.int32), metric="cosine"
    )
    node = dc.semantic_dedup(emb, flat, eps=0.03, rule=rule)
    blocks = dc.compute(node, store=tmp_path / "blocks.zarr")
    monkeypatch.setattr(matching, "block_rows", lambda *_: 1 << 20)
    whole = dc.compute(node, store=tmp_path / "whole.zarr")
    assert 0 < whole.attributes["duplicates"] < 1500
    for name in ("counts", "max_similarity", "duplicate_of"):
        np.testing.assert_array_equal(np.asarray(getattr(blocks, name)), np.asarray(getattr(whole, name)))
