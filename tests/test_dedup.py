"""Dedup within clusters: in one task, or regrouped over the cluster, to the same bits; against brute force."""

import numpy as np
import pytest
from oracles import blobs

import daskcurate as dc
from daskcurate import small_pools
from daskcurate.members import Members, SortKey


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
@pytest.mark.parametrize(
    ("keep", "masked", "dtype"), [("hard", False, "f4"), ("score", True, "f2"), ("random", True, "f4")]
)
def test_one_task_finds_what_many_find(client, pool, tmp_path, monkeypatch, rule, keep, masked, dtype):
    x = np.concatenate([blobs(3, n=700, centres=6), blobs(3, n=700, centres=6)[::7]])
    emb = pool(x.astype(dtype), chunk_rows=130)
    labels = np.random.default_rng(0).integers(-1, 9, len(x))
    labels[labels == 4] = 5  # a cluster without rows, and below one with a single row
    labels[labels == 7] = 6
    labels[10] = 7
    flat = dc.Clustering.from_arrays(emb, np.eye(9, emb.dim, dtype=np.float32) + 1, labels, metric="cosine")
    score = np.random.default_rng(1).integers(0, 20, len(x)).astype(float) if keep == "score" else keep
    within = np.random.default_rng(2).random(len(x)) < 0.8 if masked else None
    node = dc.semantic_dedup(emb, flat, eps=0.02, keep=score, rule=rule, within=within, seed=4)
    whole = dc.compute(node, store=tmp_path / "whole.zarr")
    monkeypatch.setattr(small_pools, "WHOLE_OPERATIONS", 0)
    tasks = dc.compute(node, store=tmp_path / "tasks.zarr")
    assert whole.attributes["tasks"] < tasks.attributes["tasks"]
    assert 0 < whole.attributes["duplicates"] < len(x)
    for name in ("duplicates", "pairs", "rows_in", "total"):
        assert whole.attributes[name] == tasks.attributes[name]
    for name in ("counts", "max_similarity", "duplicate_of"):
        np.testing.assert_array_equal(np.asarray(getattr(whole, name)), np.asarray(getattr(tasks, name)))


def test_one_task_agrees_with_brute_force(client, pool, tmp_path):
    x = blobs(5, n=600, centres=4)
    emb = pool(x, chunk_rows=101)
    flat = dc.compute(dc.kmeans(emb, 5, metric="cosine", n_iters=3), store=tmp_path / "run.zarr")
    found = dc.compute(dc.semantic_dedup(emb, flat, eps=0.01), store=tmp_path / "run.zarr")
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    labels, distances = np.asarray(flat.labels), np.asarray(flat.distances)
    expected = np.full(len(x), -1.0)
    for j in range(len(x)):
        before = (distances > distances[j]) | ((distances == distances[j]) & (np.arange(len(x)) < j))
        earlier = np.flatnonzero((labels == labels[j]) & before)
        if len(earlier):
            expected[j] = (unit[earlier] @ unit[j]).max()
    np.testing.assert_allclose(np.asarray(found.max_similarity), expected, atol=1e-6)
    assert (np.asarray(found.mask) == (np.asarray(found.max_similarity) <= np.float32(0.99))).all()


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_shares_make_the_whole_to_the_bit(client, pool, rule, tmp_path):
    x = np.concatenate([blobs(3, n=700, centres=6), blobs(3, n=700, centres=6)[::7]])
    emb = pool(x, chunk_rows=130)
    labels = np.random.default_rng(0).integers(-1, 9, len(x))
    flat = dc.Clustering.from_arrays(emb, np.eye(9, emb.dim, dtype=np.float32) + 1, labels, metric="cosine")
    members = Members.of(dc.compute(flat, store=tmp_path / "run.zarr"), None)
    found = []
    for parts in (1, 2, 3, 20):
        shares = [
            small_pools.match_share(members, SortKey("cosine"), rule, 0.02, part, parts)
            for part in range(parts)
        ]
        number, similarity, match = map(np.concatenate, zip(*shares, strict=True))
        order = np.argsort(number)
        assert number[order].tolist() == np.flatnonzero(labels >= 0).tolist()
        found.append((similarity[order], match[order]))
    for similarity, match in found[1:]:
        np.testing.assert_array_equal(similarity, found[0][0])
        np.testing.assert_array_equal(match, found[0][1])


def test_shares_are_of_about_equal_work():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.full(7, -1), rng.zipf(1.7, 20_000).clip(max=999)])
    for parts in (1, 2, 3, 8):
        place, owner = small_pools._places(labels, 1100, parts)
        sizes = np.bincount(labels[labels >= 0], minlength=1100)
        assert sorted(place) == list(range(1100))
        assert (np.diff(sizes[np.argsort(place)]) <= 0).all()
        work = np.bincount(owner, sizes**2.0, minlength=parts)
        assert len(work) == parts
        assert np.ptp(work) <= sizes.max() ** 2


def test_no_rows_are_left(client, pool, tmp_path):
    emb = pool(blobs(6, n=50), chunk_rows=20)
    flat = dc.Clustering.from_arrays(emb, np.ones((2, emb.dim), np.float32), np.full(50, -1))
    found = dc.compute(dc.semantic_dedup(emb, flat, eps=0.1), store=tmp_path / "run.zarr")
    assert len(found) == 0
    assert np.isnan(np.asarray(found.max_similarity)).all()
