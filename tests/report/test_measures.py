"""The figures of a report, against plain oracles over whole arrays."""

from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from daskcurate.report import measures
from daskcurate.report.drawing import _cut_tail
from daskcurate.report.measures import EPS_GRID, SIMILARITY_BINS


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(measures, "BLOCK_ROWS", 32)


def stored(values, chunk=7):
    array = zarr.create_array(store={}, shape=values.shape, dtype=values.dtype, chunks=(chunk,))
    array[...] = values
    return array


def stage(**arrays):
    made = {name: stored(values) for name, values in arrays.items()}
    return SimpleNamespace(array=made.__getitem__)


@pytest.mark.parametrize("seed", range(5))
def test_balance_of_clusters(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 50, rng.integers(2, 40))
    sizes[0] = 3
    found = measures.balance(sizes)
    p = sizes / sizes.sum()
    some = p[p > 0]
    assert found.rows == sizes.sum()
    assert found.clusters == len(some)
    assert found.effective == pytest.approx(np.exp(-(some * np.log(some)).sum()))
    assert found.gini == pytest.approx(np.abs(p[:, None] - p[None]).sum() / (2 * len(p) ** 2 * p.mean()))
    assert found.kl == pytest.approx((some * np.log(some * len(p))).sum())


def test_balance_at_its_ends():
    even = measures.balance(np.full(8, 5))
    assert (even.effective, even.gini, even.kl) == (pytest.approx(8), pytest.approx(0), pytest.approx(0))
    one = measures.balance(np.array([0, 9, 0, 0]))
    assert (one.effective, one.gini, one.kl) == (1, 0.75, pytest.approx(np.log(4)))
    assert measures.balance(np.zeros(3, np.int64)).effective == 0


def test_kept_per_cluster_counts_repeats_and_leaves_out_rows_without_a_cluster():
    rng = np.random.default_rng(1)
    labels, counts = rng.integers(-1, 6, 200).astype(np.int32), rng.integers(0, 4, 200).astype(np.int32)
    found = measures.kept_per_cluster(stored(labels), stored(counts, 10), 7)
    assert found.tolist() == [int(counts[labels == k].sum()) for k in range(7)]


def test_sizes_are_folded_over_the_level_above():
    assert measures.fold(np.array([5, 0, 2, 4]), np.array([1, -1, 1, 0]), 3).tolist() == [4, 7, 0]


def test_ranked_sizes_keep_the_first_and_the_last():
    sizes = np.random.default_rng(0).integers(0, 1000, 5000)
    ranks, values = measures.ranked_sizes(sizes)
    ordered = np.sort(sizes)[::-1]
    assert len(ranks) <= 300
    assert (ranks[0], ranks[-1]) == (1, (sizes > 0).sum())
    assert np.array_equal(values, ordered[ranks - 1])
    assert len(measures.ranked_sizes(np.zeros(3, int))[0]) == 0


def test_values_are_read_at_rows():
    values = np.random.default_rng(0).integers(0, 99, 100)
    rows = np.array([0, 3, 6, 7, 50, 99])
    assert np.array_equal(measures.values_at(stored(values), rows), values[rows])
    assert len(measures.values_at(stored(values), np.empty(0, np.int64))) == 0


def similarities(seed, n=500, eps=0.1):
    rng = np.random.default_rng(seed)
    similarity = np.clip(rng.normal(0.85, 0.1, n), -1, 1).astype(np.float32)
    similarity[:40] = 1
    similarity[40:50] = np.float32(1 - eps)  # exactly at the threshold: kept
    match = rng.integers(0, 20, n)
    similarity[50:60], match[50:60] = -1, -1
    similarity[60:70], match[60:70] = np.nan, -1
    return similarity, match


@pytest.mark.parametrize("seed", range(3))
def test_similarities(seed):
    eps = 0.1
    similarity, match = similarities(seed, eps=eps)
    found = measures.read_similarities(stage(max_similarity=similarity, duplicate_of=match), eps, border=20)
    inside = ~np.isnan(similarity)
    assert found.rows == inside.sum()
    assert found.unmatched == 10
    for at, dropped in zip(EPS_GRID, found.dropped, strict=True):
        assert dropped == (similarity[inside] > np.float32(1 - at)).sum(), at
    matched = inside & (match >= 0)
    assert np.array_equal(found.histogram, np.histogram(similarity[matched], SIMILARITY_BINS)[0])
    limit = np.float32(1 - eps)
    for table, part in (
        (found.above, similarity > limit),
        (found.below, matched & (similarity <= limit)),
    ):
        rows = np.flatnonzero(part)
        order = rows[np.lexsort((rows, np.abs(similarity[rows] - limit)))][:20]
        assert np.array_equal(table[:, 1], order)
        assert np.array_equal(table[:, 0], similarity[order].astype(np.float64))
        assert np.array_equal(table[:, 2], match[order])
    times = np.bincount(match[inside & (similarity > limit)])
    assert times[found.groups[0]] == times.max()


@pytest.mark.parametrize("floor", [-2.0, 0.9])
def test_rows_of_a_match(floor):
    similarity, match = similarities(3)
    wanted = np.array([4, 9, 9, 400])
    found = measures.rows_matching(
        stage(max_similarity=similarity, duplicate_of=match), wanted, 0.9, 5, floor
    )
    assert set(found) == {4, 9, 400}
    for one in (4, 9, 400):
        rows = np.flatnonzero((match == one) & (similarity > np.float32(floor)))
        order = rows[np.lexsort((rows, np.abs(similarity[rows] - np.float32(0.9))))][:5]
        assert found[one].total == len(rows)
        assert np.array_equal(found[one].rows, order)
        assert np.array_equal(found[one].similarity, similarity[order])


def test_extreme_members():
    rng = np.random.default_rng(0)
    labels, distances = rng.integers(-1, 5, 300).astype(np.int32), rng.random(300).astype(np.float32)
    distances[::7] = 0.5  # ties go by row
    distances[labels < 0] = np.nan
    found = measures.extreme_members(stage(labels=labels, distances=distances), [0, 3], 5, 4)
    assert set(found) == {0, 3}
    for cluster, one in found.items():
        rows = np.flatnonzero(labels == cluster)
        assert np.array_equal(one.near, rows[np.lexsort((rows, distances[rows]))][:4])
        assert np.array_equal(one.far, rows[np.lexsort((rows, -distances[rows]))][:4])
        assert np.array_equal(one.far_distance, distances[one.far])


def test_clusters_to_look_at():
    sizes = np.arange(30)
    chosen = measures.pick_clusters(sizes, 6)
    assert len(set(chosen)) == 6
    assert chosen[:2] == [29, 28]
    assert set(chosen[-2:]) == {2, 3}  # the smallest with two members
    assert measures.pick_clusters(np.array([0, 1, 0]), 6) == [1]
    assert measures.pick_clusters(np.array([4, 4]), 6) == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_histogram_loses_only_its_tail(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, 800) * (np.arange(800) >= rng.integers(0, 800))
    shown, edges = _cut_tail(counts, SIMILARITY_BINS, rng.uniform(-1, 1))
    assert len(edges) == len(shown) + 1
    assert edges[-1] == 1
    assert len(shown) <= 121
    assert shown.sum() >= 0.99 * counts.sum() - 50 * 8
